"""Definitions: what is read, and the sentence for everything that is wrong."""

from pathlib import Path

import pytest

from kvmdbg.errors import DefinitionError
from kvmdbg.images import builtin_dir
from kvmdbg.machine.define import load_definition, with_overrides

WRONG = [
    ("cpu = 1", 1, "cpu: there is no such key; known are kernel, initrd, append"),
    ("\ncpus = 0", 2, "cpus: expected a number of vCPUs, 1 to 255, got 0"),
    ("cpus = true", 1, "cpus: expected a number of vCPUs, 1 to 255, got True"),
    ("memory = 512", 1, 'memory: expected a size such as "512M" or "2G", got 512'),
    ('# a comment\n\nmemory = "lots"', 3, "memory: expected a size"),
    ('kernel = "nope"', 1, "kernel: there is no file {folder}/nope"),
    ('kernel = ""', 1, "kernel: expected a path, or image:NAME, got ''"),
    ('kernel = "image:vmlinuz"', 1, "kernel: image:vmlinuz needs a recipe: add [image]"),
    ('initrd = "vm.toml"', 1, "initrd: this is for a kernel: add the key kernel"),
    ('append = "quiet"', 1, "append: this is for a kernel: add the key kernel"),
    ('vmlinux = "vm.toml"', 1, "vmlinux: {folder}/vm.toml is no ELF file"),
    ('arch = "vax"', 1, 'arch: expected "x86_64" or "aarch64", got \'vax\''),
    ('accel = "hvf"', 1, 'accel: expected "auto", "kvm" or "tcg", got \'hvf\''),
    ('kaslr = "no"', 1, "kaslr: expected true or false, got 'no'"),
    ('extra_args = ["-s", 1]', 1, "extra_args: expected a list of strings"),
    ("cpus = 1\n[debug]\non_kill = 3", 3, 'debug.on_kill: expected "quit" or "detach", got 3'),
    ("[debug]\norphan_timeout = -1", 2, "debug.orphan_timeout: expected a number of seconds"),
    ("[debug]\n\nonkill = 1", 3, "debug.onkill: there is no such key; known are on_kill"),
    ("debug = 3", 1, "debug: expected a table, got 3"),
    ("debug = { on_kill = 3 }", 1, "debug.on_kill: expected"),
    ("cpus = 1\n[image]", 2, "image: the key recipe is missing"),
    ('cpus = 1\nimage.recipe = "r"', 2, "image.recipe: there is no file {folder}/r"),
]


@pytest.mark.parametrize(("text", "line", "problem"), WRONG)
def test_an_error_names_file_line_and_key(
    tmp_path: Path, text: str, line: int, problem: str
) -> None:
    path = tmp_path / "vm.toml"
    path.write_text(text)
    with pytest.raises(DefinitionError) as caught:
        load_definition(path)
    assert str(caught.value).startswith(f"{path}:{line}: {problem.format(folder=tmp_path)}")


def test_bad_toml_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "vm.toml"
    path.write_text("cpus = 1\ncpus = = 2\n")
    with pytest.raises(DefinitionError, match=r"vm.toml: not valid TOML: .*line 2"):
        load_definition(path)


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    path = tmp_path / "vm.toml"
    with pytest.raises(DefinitionError, match=r"cannot read the VM definition .*: No such file"):
        load_definition(path)
    path.write_bytes(b"\xff")
    with pytest.raises(DefinitionError, match="UTF-8"):
        load_definition(path)


def test_defaults_and_relative_paths(tmp_path: Path) -> None:
    (tmp_path / "bzImage").touch()
    path = tmp_path / "mine.toml"
    path.write_text('kernel = "bzImage"')
    definition = load_definition(path)
    assert (definition.name, definition.cpus, definition.memory) == ("mine", 1, "512M")
    assert (definition.debug.on_kill, definition.debug.orphan_timeout) == ("quit", 600.0)
    assert definition.files(None).kernel == tmp_path / "bzImage"


def test_symbols_are_of_the_guests_architecture(tmp_path: Path) -> None:
    path = tmp_path / "vm.toml"
    path.write_text('vmlinux = "vmlinux"')
    elf = b"\x7fELF" + bytes(14)
    (tmp_path / "vmlinux").write_bytes(elf + (62).to_bytes(2, "little"))
    assert load_definition(path).files(None).vmlinux == tmp_path / "vmlinux"
    (tmp_path / "vmlinux").write_bytes(elf + (183).to_bytes(2, "little"))
    with pytest.raises(DefinitionError, match=r":1: vmlinux: .*/vmlinux is not for x86_64"):
        load_definition(path)


def test_vm_toml_is_named_after_its_folder() -> None:
    definition = load_definition(builtin_dir() / "demo" / "vm.toml")
    assert definition.name == "demo"
    assert definition.kaslr is False
    assert definition.recipe is not None


def test_overrides_are_checked_like_the_file(tmp_path: Path) -> None:
    path = tmp_path / "vm.toml"
    path.write_text("cpus = 1")
    definition = load_definition(path)
    assert with_overrides(definition, {"cpus": 2, "debug": {"on_kill": "detach"}}).cpus == 2
    with pytest.raises(DefinitionError, match=r"^set for this run: cpus: expected a number"):
        with_overrides(definition, {"cpus": 0})
    with pytest.raises(DefinitionError, match=r"^set for this run: name: there is no such key"):
        with_overrides(definition, {"name": "x"})
