#!/bin/bash
# build.sh [DIR]: make the image of the tests and of the demo, and keep it in DIR/registry, the storage of a
# docker-registry that then only has to be served. DIR is $THINSNAP_CACHE/image unless it is given.
#
# The image is Debian, made here with Debian's tools from the mirrors that this machine's apt is configured for. Each of
# its five layers is one way in which layers differ from plain copies; layers.sh says which. It is made again only when
# these scripts change. With IMAGE=reference that image is copied from its registry instead.
#
# DIR/name holds the image's name in the registry. Needs root: device nodes, owners and file capabilities are real.
set -euo pipefail

here=$(dirname "$(realpath "$0")")
cache=${THINSNAP_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/thinsnap}
dir=$(realpath -m "${1:-$cache/image}")

if [ "$(id -u)" != 0 ]; then
  exec sudo --preserve-env=IMAGE "$0" "$dir"
fi

say() { echo "image: $*" >&2; }

for tool in mmdebstrap umoci skopeo docker-registry; do
  command -v "$tool" > /dev/null || { say "$tool is missing: run integration/setup.sh"; exit 1; }
done

if [ -n "${IMAGE:-}" ]; then
  stamp="copy of $IMAGE"
else
  stamp=$(cat "$here/build.sh" "$here/layers.sh" | sha256sum)
fi
if [ "$(cat "$dir/stamp" 2> /dev/null)" = "$stamp" ]; then
  exit 0
fi

work=$(mktemp -d)
registry=
cleanup() {
  if [ -n "$registry" ]; then
    kill "$registry" 2> /dev/null && wait "$registry" || true
  fi
  rm -rf "$work"
}
trap cleanup EXIT

# push SOURCE NAME: copy an image into $work/registry under that name.
push() {
  mkdir -p "$work/registry"
  # Port 0: the kernel picks one that is free, and the log says which.
  REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY=$work/registry REGISTRY_HTTP_ADDR=127.0.0.1:0 \
    docker-registry serve "$here/registry.yml" > "$work/registry.log" 2>&1 &
  registry=$!
  local address=
  for _ in $(seq 100); do
    address=$(sed -n 's/.*listening on \(127[0-9.:]*\).*/\1/p' "$work/registry.log" | head -1)
    [ -z "$address" ] || break
    sleep 0.1
  done
  if [ -z "$address" ]; then
    say "the registry does not start:"
    cat "$work/registry.log" >&2
    return 1
  fi
  skopeo --insecure-policy copy --quiet --dest-tls-verify=false "$1" "docker://$address/$2"
  kill "$registry" && wait "$registry" || true
  registry=
  echo "$2" > "$work/name"
}

if [ -n "${IMAGE:-}" ]; then
  say "copying $IMAGE"
  push "docker://$IMAGE" copy:latest
else
  # shellcheck source=layers.sh
  . "$here/layers.sh"
  make_layers "$work"
  push "oci:$work/oci:debian" debian:thinsnap
fi

rm -rf "$dir"
mkdir -p "$dir"
mv "$work/registry" "$work/name" "$dir/"
echo "$stamp" > "$dir/stamp"
if [ -n "${SUDO_UID:-}" ]; then
  chown -R "$SUDO_UID:$SUDO_GID" "$dir"
fi
say "$(cat "$dir/name"), $(du -sh "$dir/registry" | cut -f1) in $dir"
