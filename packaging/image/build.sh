#!/bin/bash
# build.sh FILE: creates an OCI archive of the image localhost/thinsnap:latest for docs/kubernetes/daemonset.yaml. It has thinsnap's
# package and the Debian programs that it runs, from the mirrors in this machine's apt configuration. It needs root for the
# owners of files, and uses sudo.
set -euo pipefail

here=$(dirname "$(realpath "$0")")
if [ "$(id -u)" != 0 ]; then
	exec sudo --preserve-env=THINSNAP_CACHE,XDG_CACHE_HOME,PATH "$here/build.sh" "$@"
fi
mkdir -p "$(dirname "$1")"
file=$(realpath "$1")
for tool in mmdebstrap umoci skopeo; do
	command -v "$tool" >/dev/null || { echo "image: $tool is missing: run integration/setup.sh packages" >&2; exit 1; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
say() { echo "image: $*" >&2; }

# For machine_sources, which the tests' images also use.
# shellcheck source=../../integration/image/layers.sh
. "$here/../../integration/image/layers.sh"

SOURCE_DATE_EPOCH=$(git -C "$here" show -s --format=%ct)
deb=$("$here/../build.sh" "$work" deb)
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
machine_sources "$suite" >"$work/sources.list"
apt-config dump --format '%f "%v";%n' Acquire::http Acquire::https >"$work/apt.conf"
exclude=()
for path in share/doc share/man share/locale share/info share/lintian; do
	exclude+=(--dpkgopt="path-exclude=/usr/$path/*")
done
exclude+=(--dpkgopt='path-include=/usr/share/doc/*/copyright')
# Packages are only unpacked: these programs need no configuration.
mmdebstrap --mode=root --variant=extract --include=coreutils,dash,e2fsprogs,lvm2,thin-provisioning-tools,util-linux,xfsprogs \
	"${exclude[@]}" --aptopt="$work/apt.conf" --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
	"$suite" "$work/root" "$work/sources.list" >"$work/mmdebstrap.log" 2>&1 || {
	cat "$work/mmdebstrap.log" >&2
	exit 1
}
rm -rf "$work"/root/{dev,etc/apt,tmp,var/cache,var/lib/apt,var/lib/dpkg,var/log}/*
dpkg-deb --fsys-tarfile "$deb" | tar -C "$work/root" --keep-directory-symlink -xf - ./etc ./usr/bin ./usr/share/doc
mkdir -p "$work"/root/{proc,run,sys}
tar -C "$work/root" --numeric-owner --sort=name --clamp-mtime --mtime="@$SOURCE_DATE_EPOCH" -cf "$work/root.tar" .
umoci init --layout "$work/oci"
umoci new --image "$work/oci:latest"
umoci raw add-layer --image "$work/oci:latest" "$work/root.tar"
umoci config --image "$work/oci:latest" --config.entrypoint /usr/bin/thinsnap --config.cmd serve \
	--config.env PATH=/usr/sbin:/usr/bin:/sbin:/bin
rm -f "$file"
skopeo --insecure-policy copy --quiet "oci:$work/oci:latest" "oci-archive:$file:localhost/thinsnap:latest"
say "$(du -h "$file" | cut -f1) in $file"
