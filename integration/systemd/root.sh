#!/bin/bash
# root.sh IMAGE: makes a disk image with an ext4 file system, on which Debian is installed with systemd and containerd,
# from the mirrors of this machine's apt. It has no kernel; vm.Config.Root describes the boot.
#
# Needs root, or a user with subordinate ids (subuid(5)) and fakeroot: mke2fs writes the file system, and nothing mounts
# it.
set -euo pipefail

here=$(dirname "$(realpath "$0")")
image=$(realpath -m "$1")
# shellcheck source=../image/layers.sh
. "$here/../image/layers.sh"

packages=systemd,systemd-sysv,udev,dbus,kmod,sudo,procps,e2fsprogs,init-system-helpers
packages+=,containerd,runc,lvm2,thin-provisioning-tools
work=$(mktemp -d)
trap 'rm -rf "$work" "$image.new"' EXIT
chmod 755 "$work"
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
machine_sources "$suite" > "$work/sources.list"
apt-config dump --format '%f "%v";%n' Acquire::http Acquire::https > "$work/apt.conf"
mkdir -p "$(dirname "$image")"
rm -f "$image.new"
truncate -s 10G "$image.new"
exclude=()
for path in doc man locale info; do
	exclude+=(--dpkgopt="path-exclude=/usr/share/$path/*")
done
# The guest has no mirror: its apt installs only local files.
mmdebstrap --variant=apt --include="$packages" "${exclude[@]}" --aptopt="$work/apt.conf" \
	--customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/etc/apt/sources.list*' \
	--customize-hook='echo thinsnap-guest > "$1/etc/hostname"; echo "127.0.0.1 localhost thinsnap-guest" > "$1/etc/hosts"' \
	"$suite" "$work/root.tar" "$work/sources.list" > "$work/log" 2>&1 || {
	cat "$work/log" >&2
	exit 1
}
mkdir "$work/root"
owners=()
[ "$(id -u)" = 0 ] || owners=(fakeroot)
# shellcheck disable=SC2016 # for the inner shell
"${owners[@]}" sh -ec 'tar -C "$1/root" -xpf "$1/root.tar"
	PATH=$PATH:/usr/sbin:/sbin mke2fs -q -t ext4 -L root -E lazy_itable_init=1 -d "$1/root" "$2"' sh "$work" "$image.new"
mv "$image.new" "$image"
