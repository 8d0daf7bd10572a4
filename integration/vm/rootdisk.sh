#!/bin/sh
# The first program of a machine with one disk: mounts the disk, and starts its shell, which runs the console's lines
# one after the other. It writes nothing to the disk.
die() {
	echo "thinsnap guest: $*"
	poweroff -f
}

mount -t devtmpfs devtmpfs /dev
while read -r module; do
	insmod "/modules/$module" || die "cannot load $module"
done </modules/list
mount -t ext4 /dev/vda /root 2>/dev/null || mount -t xfs /dev/vda /root || die "cannot mount the disk"
stty -echo
exec switch_root /root /bin/sh -c '
echo thinsnap guest ready
while read -r command; do
	(eval "$command") 2>&1
	echo "thinsnap guest status $?"
done'
