#!/bin/bash
# build.sh [large]: makes the images of the tests and of the demo, and prints their directory. In it, registry is the
# storage of a docker-registry, ready to be served, and the file name has the name of the demo's image.
#
#   debian:thinsnap    Debian, made with Debian's tools from the mirrors of this machine's apt. Its layers have the
#                      differences between layers and plain copies; see layers.sh
#   layers16:thinsnap  the same system in 16 layers of the same size, for measurements
#   busybox:thinsnap   one static program in two layers, for tests that need no more
#
# "build.sh large" makes only layers16, in a directory of its own: 240 MB, with git, Perl and Python, and with all files
# of the packages.
#
# The images are made again only when these scripts change. IMAGE=reference copies that image from its registry instead,
# into a directory of its own. The directories are in $THINSNAP_CACHE, else $XDG_CACHE_HOME/thinsnap, else
# ~/.cache/thinsnap. Needs root, by sudo if necessary: device nodes, owners and file capabilities are real.
set -euo pipefail

here=$(dirname "$(realpath "$0")")
cache=${THINSNAP_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/thinsnap}
which=${1:-}
dir=$cache/image${IMAGE:+-copy}${which:+-$which}
# setup.sh unpacks the registry to this directory, because Debian's package would start it as a service.
PATH=$PATH:$cache/debian/docker-registry/usr/bin

if [ "$(id -u)" != 0 ]; then
	export THINSNAP_CACHE=$cache
	exec sudo --preserve-env=IMAGE,THINSNAP_CACHE "$0" "$@"
fi

say() { echo "image: $*" >&2; }

for tool in mmdebstrap umoci skopeo docker-registry; do
	command -v "$tool" > /dev/null || { say "$tool is missing: run integration/setup.sh"; exit 1; }
done

if [ -n "${IMAGE:-}" ]; then
	stamp="copy of $IMAGE"
else
	stamp=$(cat "$here"/* | sha256sum)
fi
if [ "$(cat "$dir/stamp" 2> /dev/null)" = "$stamp" ]; then
	echo "$dir"
	exit 0
fi

work=$(mktemp -d)
registry=
address=
cleanup() {
	if [ -n "$registry" ]; then
		kill "$registry" 2> /dev/null && wait "$registry" || true
	fi
	rm -rf "$work"
}
trap cleanup EXIT

start_registry() {
	mkdir "$work/registry"
	# The shell may create the log only after the first read of it below.
	: > "$work/registry.log"
	# The configuration asks for port 0; the log has the kernel's choice.
	REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY=$work/registry docker-registry serve "$here/registry.yml" \
		> "$work/registry.log" 2>&1 &
	registry=$!
	for _ in $(seq 300); do
		address=$(sed -n 's/.*listening on \(127[0-9.:]*\).*/\1/p' "$work/registry.log" | head -1)
		[ -z "$address" ] || return 0
		sleep 0.1
	done
	say "the registry does not start:"
	cat "$work/registry.log" >&2
	return 1
}

# push SOURCE NAME: copies an image into the registry under that name.
push() {
	skopeo --insecure-policy copy --quiet --dest-tls-verify=false "$1" "docker://$address/$2"
}

start_registry
if [ -n "${IMAGE:-}" ]; then
	say "copying $IMAGE"
	push "docker://$IMAGE" copy:thinsnap
	echo copy:thinsnap > "$work/name"
elif [ "$which" = large ]; then
	# shellcheck source=layers.sh
	. "$here/layers.sh"
	installed=usr-is-merged,git,perl,python3 left_out=
	say "installing a larger Debian"
	debian "$work"
	umoci init --layout "$work/oci"
	make_layers16 "$work"
	push "oci:$work/oci:layers16" layers16:thinsnap
	echo layers16:thinsnap > "$work/name"
else
	# shellcheck source=layers.sh
	. "$here/layers.sh"
	make_debian "$work"
	push "oci:$work/oci:debian" debian:thinsnap
	make_layers16 "$work"
	push "oci:$work/oci:layers16" layers16:thinsnap
	make_busybox "$work"
	push "oci:$work/oci:busybox" busybox:thinsnap
	echo debian:thinsnap > "$work/name"
fi
kill "$registry"
wait "$registry" || true
registry=

rm -rf "$dir"
mkdir -p "$dir"
mv "$work/registry" "$work/name" "$dir/"
echo "$stamp" > "$dir/stamp"
if [ -n "${SUDO_UID:-}" ]; then
	chown -R "$SUDO_UID:$SUDO_GID" "$dir"
fi
echo "$dir"
