#!/usr/bin/env bash
# `make demo` and `make test` on a machine that has nothing: a minimal Debian 12 made by debootstrap, with
# git, make and CA certificates, and a clean clone of HEAD. Prints how long each took.
#
# Packages come from where this machine's own apt and pip get them.
set -euo pipefail

suite=bookworm
usage="usage: $0 [--only TARGET] [--worktree] [--mirror URL] [--dir DIR] [--keep]
  --only TARGET  make demo, test or setup alone (default: demo, then test, in the same system)
  --worktree     take the working tree as it is, not a clone of HEAD
  --mirror URL   Debian mirror (default: the one this machine's apt uses)
  --dir DIR      make the system in DIR, which must be empty or absent (default: a new folder in /var/tmp)
  --keep         leave it there when done"

die() {
    echo "$0: $*" >&2
    exit 1
}

targets=(demo test) worktree=false mirror='' dir='' keep=false inside=false
while [ $# -gt 0 ]; do
    case $1 in
        --only)
            case ${2-} in demo | test | setup) targets=("$2") ;; *) die "--only takes demo, test or setup" ;; esac
            shift
            ;;
        --worktree) worktree=true ;;
        --mirror) mirror=${2?$usage} && shift ;;
        --dir) dir=${2?$usage} && shift ;;
        --keep) keep=true ;;
        --inside) inside=true ;; # ourselves again, in a mount namespace of our own
        -h | --help) echo "$usage" && exit ;;
        *) echo "$usage" >&2 && exit 2 ;;
    esac
    shift
done

repository=$(cd "$(dirname "$0")/../.." && pwd)

# The namespaces end with the inner run: nothing stays mounted when we delete, and nothing runs on.
outer() {
    [ "$(id -u)" = 0 ] || die "making a system takes root: run it with sudo"
    command -v debootstrap >/dev/null || die "debootstrap is missing: apt-get install debootstrap"
    if [ -z "$dir" ]; then
        dir=$(mktemp -d /var/tmp/kvmdbg-fresh.XXXXXX)
    else
        mkdir -p "$dir"
        dir=$(cd "$dir" && pwd -P)
        [ -z "$(ls -A "$dir")" ] || die "$dir is not empty: name another folder"
    fi
    chmod 755 "$dir"

    local options=(--inside --dir "$dir")
    [ ${#targets[@]} = 2 ] || options+=(--only "${targets[0]}")
    [ -z "$mirror" ] || options+=(--mirror "$mirror")
    ! $worktree || options+=(--worktree)

    local status=0
    unshare --mount --pid --fork --kill-child --mount-proc --propagation private "$0" "${options[@]}" || status=$?
    if $keep; then
        echo "kept: $dir"
    else
        rm -rf --one-file-system "$dir"
    fi
    exit $status
}

make_system() {
    if [ -z "$mirror" ]; then
        # shellcheck disable=SC2016  # apt's own variables
        mirror=$(apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(SITE)' 2>/dev/null |
            awk -v suite="$suite" '$1 == suite && $2 == "main" {print $3; exit}')
        [ -n "$mirror" ] || die "this machine's apt knows no $suite: name a Debian mirror with --mirror"
        local sources=true
    fi
    debootstrap --variant=minbase --include=git,make,ca-certificates "$suite" "$dir" "$mirror"
    ! ${sources-false} || copy_apt_sources
    copy_certificates
    copy_pip_configuration
    install -m 644 /etc/resolv.conf /etc/hosts "$dir/etc/"
    printf '#!/bin/sh\nexit 101\n' >"$dir/usr/sbin/policy-rc.d" # start no services
    chmod 755 "$dir/usr/sbin/policy-rc.d"
}

copy_apt_sources() {
    local path
    rm -f "$dir/etc/apt/sources.list"
    for path in /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources} \
        /etc/apt/auth.conf /etc/apt/{auth.conf.d,keyrings,trusted.gpg.d}/* /usr/share/keyrings/*; do
        [ ! -f "$path" ] || install -D -m 644 "$path" "$dir$path"
    done
    # How to fetch, without the hooks that other packages of this machine have put there.
    apt-config dump | grep -E '^Acquire::(https?|Check-|Retries|ForceIPv)' >"$dir/etc/apt/apt.conf.d/90fetch" || true
}

copy_certificates() {
    local bundle=/etc/ssl/certs/ca-certificates.crt path
    for path in /usr/local/share/ca-certificates/*.crt; do
        [ ! -f "$path" ] || install -D -m 644 "$path" "$dir$path"
    done
    chroot "$dir" update-ca-certificates >/dev/null
    [ ! -f $bundle ] || install -m 644 "$(realpath $bundle)" "$dir$bundle"
}

copy_pip_configuration() {
    local path
    for path in /etc/pip.conf ~/.pip/pip.conf ~/.config/pip/pip.conf; do
        [ ! -f "$path" ] || install -D -m 644 "$path" "$dir${path/#$HOME//root}"
    done
    # Folders of packages that pip is told to look in.
    { cat /etc/pip.conf ~/.pip/pip.conf ~/.config/pip/pip.conf 2>/dev/null || true; env | grep '^PIP_' || true; } |
        { grep -oE '(file:/|[ =])/[^ ,]+' || true; } | sed -E 's,^(file:/|[ =]),,; s,/simple/?$,,' | sort -u |
        while read -r path; do
            [ ! -d "$path" ] || { mkdir -p "$dir$path" && mount --rbind "$path" "$dir$path"; }
        done
}

mount_kernel_filesystems() {
    mount -t proc proc "$dir/proc"
    mount -t sysfs sysfs "$dir/sys"
    mount --rbind /dev "$dir/dev"
}

copy_source() {
    if $worktree; then
        mkdir "$dir/root/kvmdbg"
        (cd "$repository" && git ls-files -z --cached --others --exclude-standard |
            tar --create --null --ignore-failed-read --files-from=- 2>/dev/null) | tar --extract -C "$dir/root/kvmdbg"
        git -C "$dir/root/kvmdbg" init --quiet
    else
        git clone --quiet --no-hardlinks "$repository" "$dir/root/kvmdbg"
    fi
    chown -R 0:0 "$dir/root/kvmdbg"
}

# Run in the system, with nothing of this machine's environment but what fetching takes.
in_system() {
    local name environment=(HOME=/root LANG=C.UTF-8 "TERM=${TERM-dumb}"
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
    for name in $(compgen -e | grep -E '^PIP_|^(https?|no)_proxy$|^(HTTPS?|NO)_PROXY$'); do
        environment+=("$name=${!name}")
    done
    # Not a terminal, so that the demo ends by itself.
    env -i "${environment[@]}" chroot "$dir" /bin/sh -c "cd /root/kvmdbg && $*" </dev/null 2>&1 | cat
}

# shellcheck disable=SC2329  # run by a trap
end_leftovers() {
    local process
    for process in /proc/[0-9]*; do
        if [ "$(readlink "$process/root" 2>/dev/null)" = "$dir" ]; then
            echo "still running, ended: $(tr '\0' ' ' <"$process/cmdline")"
            kill -9 "${process#/proc/}" || true
        fi
    done
}

inner() {
    local status=0 target start report=()
    trap end_leftovers EXIT
    make_system
    mount_kernel_filesystems
    copy_source
    for target in "${targets[@]}"; do
        echo "== make $target"
        start=$SECONDS
        if in_system "make $target"; then
            report+=("make $target: passed in $((SECONDS - start)) s")
        else
            report+=("make $target: FAILED after $((SECONDS - start)) s")
            status=1
        fi
    done
    printf '%s\n' "${report[@]}"
    exit $status
}

if $inside; then inner; else outer; fi
