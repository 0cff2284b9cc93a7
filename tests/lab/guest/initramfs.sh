#!/bin/sh
# First program of an L1: load drivers, put a writable overlay over the read-only disk, hand over.
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
while read -r module; do
    insmod "/modules/$module.ko" || echo "lab: cannot load $module"
done </modules/order
mkdir -p /disk /memory /new
for _ in 1 2 3 4 5 6 7 8 9 10; do
    [ -b /dev/vda ] && break
    sleep 0.1
done
mount -t ext4 -o ro,noatime /dev/vda /disk
mount -t tmpfs -o size=75% memory /memory
mkdir /memory/upper /memory/work
mount -t overlay -o lowerdir=/disk,upperdir=/memory/upper,workdir=/memory/work root /new
umount /proc
mount --move /dev /new/dev
exec switch_root /new /lab/init
