# Everything a developer runs. `make` alone lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

VENV := .venv
BIN := $(VENV)/bin
# Tools that meson looks up (ninja, cffi-gen-src) are the venv's own.
export PATH := $(CURDIR)/$(BIN):$(PATH)

INSTALLED := $(VENV)/.installed
NATIVE := $(wildcard cdefs/*.h kvmdbg/native/*.[ch] kvmdbg/agent/native/*.[ch])
C_SOURCES := $(wildcard kvmdbg/native/*.[ch] kvmdbg/agent/native/*.[ch] vm-images/*/*.[ch] tests/agent/*.[ch])
SHELL_SCRIPTS := $(shell grep -rlIE '^\#!/.*\bsh$$|^\#!/.*\bbash$$' .ci tests vm-images --exclude='*.py')

# Commands the tools call, each with the Debian package that has it; headers the C sources need likewise.
APT_COMMANDS := gcc:gcc git:git gdb:gdb cpio:cpio qemu-system-x86_64:qemu-system-x86 \
	aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu gdb-multiarch:gdb-multiarch qemu-system-aarch64:qemu-system-arm \
	lldb:lldb
APT_HEADERS := stdlib.h:libc6-dev linux/kvm.h:linux-libc-dev

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.PHONY: setup
setup: $(INSTALLED) ## system packages (apt) and .venv with kvmdbg, editable; quick when up to date

# A python with venv and headers, 3.11 or newer; the distribution's own is the fallback.
find_python = for python in python3 /usr/bin/python3 python3.14 python3.13 python3.12 python3.11; do \
	  "$$python" -c 'import ensurepip, os, sys, sysconfig, venv; \
	    sys.exit(sys.version_info < (3, 11) or not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
	    >/dev/null 2>&1 && { echo "$$python"; break; }; done

$(INSTALLED): Makefile pyproject.toml meson.build $(NATIVE)
ifndef LOCKED
	@# Two that set up at once would be in each other's way; the second one then finds it done.
	@flock Makefile $(MAKE) --no-print-directory --silent LOCKED=yes $@
else
	@missing=(); \
	for entry in $(APT_COMMANDS); do command -v "$${entry%%:*}" >/dev/null || missing+=("$${entry##*:}"); done; \
	for entry in $(APT_HEADERS); do [ -e "/usr/include/$${entry%%:*}" ] || missing+=("$${entry##*:}"); done; \
	[ -n "$$($(find_python))" ] || missing+=(python3 python3-venv python3-dev); \
	if [ "$${#missing[@]}" -gt 0 ]; then \
	  if [ "$$(id -u)" = 0 ]; then sudo=""; elif command -v sudo >/dev/null; then sudo=sudo; else \
	    echo "make setup: not root and no sudo: have an administrator run 'apt-get install $${missing[*]}', then run make setup again" >&2; exit 1; fi; \
	  command -v apt-get >/dev/null || { echo "make setup: no apt-get here: install what these Debian packages hold, then run make setup again: $${missing[*]}" >&2; exit 1; }; \
	  echo "setup: apt-get install $${missing[*]}"; \
	  $$sudo env DEBIAN_FRONTEND=noninteractive apt-get -q update; \
	  $$sudo env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install "$${missing[@]}"; \
	fi
	@if [ ! -x $(BIN)/python ]; then \
	  python=$$($(find_python)); \
	  [ -n "$$python" ] || { echo "make setup: no Python 3.11 or newer with venv and headers: install one and put it first on PATH" >&2; exit 1; }; \
	  echo "setup: creating $(VENV) with $$("$$python" --version)"; \
	  "$$python" -m venv $(VENV); \
	fi
	@echo "setup: installing kvmdbg and the developers' tools into $(VENV)"
	@# What an editable build without isolation takes: ours, and that of dependencies without a wheel.
	@$(BIN)/python -m pip install --quiet 'cffi >= 2.1' 'meson >= 1.4' 'meson-python >= 0.19' ninja setuptools wheel
	@$(BIN)/python -m pip install --quiet --no-build-isolation --config-settings=build-dir=$(VENV)/build --editable '.[dev]'
	@# Not among the tools, on whose PATH they would stand in for the user's own.
	@$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/gdb18 'gdb-for-pwndbg == 18.*'
	@$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/lldb23 'lldb-for-pwndbg == 23.*'
	@touch $@
	@echo "setup: done"
endif

.PHONY: images
images: setup ## build the demo images (kernel, initramfs, symbols) into the user's cache
	@for recipe in vm-images/*/recipe.toml; do $(BIN)/kvmdbg images "$$(basename "$$(dirname "$$recipe")")"; done

.PHONY: demo
demo: setup ## debug a Debian kernel with gdb: a transcript, then (on a terminal) the gdb prompt
	@batch=-batch; if [ -t 0 ] && [ -t 1 ]; then batch=; fi; set -x; \
	$(BIN)/kvmdbg --vm demo --gdb -- $$batch -x vm-images/demo/demo.gdb

.PHONY: fmt
fmt: setup ## format Python and C
	$(BIN)/ruff format kvmdbg tests
	$(BIN)/ruff check --fix-only kvmdbg tests
	$(BIN)/clang-format -i $(C_SOURCES)

.PHONY: lint
lint: setup ## formatting, ruff, clang-format, shellcheck, codespell
	$(BIN)/ruff format --check kvmdbg tests
	$(BIN)/ruff check kvmdbg tests
	$(BIN)/clang-format --dry-run --Werror $(C_SOURCES)
	$(BIN)/shellcheck $(SHELL_SCRIPTS)
	$(BIN)/codespell .

.PHONY: typecheck
typecheck: setup ## mypy --strict
	$(BIN)/mypy

.PHONY: check
check: lint typecheck ## lint, types and unit tests, in under a minute
	$(BIN)/pytest -q tests/unit

.PHONY: test
test: lint typecheck images ## lint, types, and all tests, on real VMs and on real KVM in the lab
	$(BIN)/pytest tests

# LAB=host: this machine's own KVM. ARCH=aarch64: an arm64 L1. JUNIT: a file to bring back.
# CPUS=2: vCPUs of an L2 run at the same time, and the outer QEMU's threads race.
# make's own exit status is 2 whatever CMD's was; the module's is CMD's.
ARCH ?= x86_64
LAB ?= l1
CPUS ?=
run_lab := $(BIN)/python -m tests.lab --arch $(ARCH) --where $(LAB) $(if $(CPUS),--cpus $(CPUS))

.PHONY: lab
lab: setup ## a guest with real KVM, anywhere: times, or CMD='…' run inside (LAB=host: here)
	@$(run_lab) $(if $(value CMD),run --file '$(JUNIT)' -- "$$LAB_CMD",times)

lab: export LAB_CMD := $(value CMD)

.PHONY: lab-test
lab-test: setup ## of the tests, those in the lab: its own, and tests/kvm on the KVMs in it
	$(BIN)/pytest tests/lab

.PHONY: lab-shell
lab-shell: setup ## a shell in the lab, in a copy of the working tree
	@$(run_lab) shell

.PHONY: lab-update
lab-update: setup ## pin the lab's packages and wheels as mirror and index have them now
	@$(run_lab) update

.PHONY: packets
packets: images ## record what each client sends in the live tests, into the README's table
	$(BIN)/python -m tests.packets

.PHONY: bench
bench: images ## RSP round trips, and what gdb makes of them, beside QEMU's own stub; what idle kvmdbg costs
	$(BIN)/python -m tests.bench

SECONDS ?= 600

.PHONY: fuzz
fuzz: images ## hostile bytes, SECONDS=600 of each kind: drawn by hypothesis, guided by coverage, to a live VM
	$(BIN)/python -m tests.fuzz $(SECONDS)
	$(BIN)/pip install --quiet atheris
	$(BIN)/python -m tests.fuzz.guided $(SECONDS)
	$(BIN)/python -m tests.fuzz.live $(SECONDS)
	$(BIN)/python -m tests.fuzz.live --accel kvm $(SECONDS)

.PHONY: soak
soak: images ## what make test samples, in full: hours of it, guests under the lab's KVM included
	KVMDBG_SOAK=1 $(BIN)/pytest tests/agent tests/vm/test_cost.py tests/vm/test_killed.py \
	  tests/lab/test_lab.py

.PHONY: clean
clean: ## remove .venv, builds and caches (images stay in the user's cache)
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find kvmdbg tests -name __pycache__ -prune -exec rm -rf {} +
