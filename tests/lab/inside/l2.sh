#!/usr/bin/env bash
# Inside an L1: boot an L2 under its KVM, then debug it with gdb through QEMU's own stub.
#   l2.sh CONSOLE QEMU [ARGUMENT…]; l2.gdb says what is done.
set -euo pipefail

console=$1
shift
l2=/lab/l2 # kernel, initramfs and symbols of a guest
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'kill %1; rm -r "$work"' EXIT

"$@" -accel kvm -cpu host -m 256 -nodefaults -display none -no-reboot \
    -kernel $l2/vmlinuz -initrd $l2/initramfs -append "console=$console quiet mitigations=off nokaslr panic=-1" \
    -gdb "unix:$work/gdb,server=on,wait=off" -serial "file:$work/console" &

for _ in $(seq 600); do
    ! grep -q ready "$work/console" 2>/dev/null || break
    kill -0 %1 || exit 1
    sleep 0.1
done
cat "$work/console"
gdb -batch -nx -ex 'set pagination off' -ex "file $l2/vmlinux" -ex "target remote $work/gdb" -x "$here/l2.gdb"
