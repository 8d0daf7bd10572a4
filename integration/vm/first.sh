#!/bin/sh
# The beginning of the first program in each guest with an initial RAM disk; init.sh or system.sh follows.
die() {
	echo "thinsnap guest: $*"
	poweroff -f
}
param() { sed -n "s/.*thinsnap\.$1=\([^ ]*\).*/\1/p" /proc/cmdline; }

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read -r module; do
	insmod "/modules/$module" || die "cannot load $module"
done </modules/list
