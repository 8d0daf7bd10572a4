#!/bin/sh
# The first program of a user-mode guest: lays a file system for the guest's writes over the host's, and starts the
# agent on it. Its arguments are the agent, the directory with lib/modules, and the kernel's release.
die() {
	echo "thinsnap guest: $*"
	echo o >/proc/sysrq-trigger
	sleep 60
}
agent=$1 dir=$2 release=$3
PATH=/usr/sbin:/usr/bin:/sbin:/bin

mount -t proc proc /proc
modprobe -d "$dir" -S "$release" overlay || die "cannot load overlay"
mount -t tmpfs -o size=90% tmpfs /mnt || die "cannot mount a tmpfs"
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work overlay /mnt/root ||
	die "cannot mount the root file system"
cd /mnt/root || die "cannot enter the root file system"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t devtmpfs devtmpfs dev || die "cannot mount /dev"
pivot_root . mnt || die "cannot change the root file system"
exec chroot . /bin/sh -c 'umount -l /mnt; exec "$1" -guest-init' sh "$agent"
