#!/bin/bash
# demo.sh: shows thinsnap with containerd 2.4, nerdctl and a real image, on any Debian machine. Installs and builds what
# it needs first (see setup.sh). Runs in a virtual machine unless this machine has root and dm-thin; all its files,
# sockets and devices are its own in both cases. IMAGE=reference uses that image instead of one built here.
set -euo pipefail
cd "$(dirname "$0")/.."

cache=${THINSNAP_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/thinsnap}

heading() { printf '\n== %s\n' "$*"; }

heading 'Programs and image'
integration/setup.sh packages kernel debian vmrun containerd nerdctl
make --no-print-directory build
images=$(integration/image/build.sh)
echo "bin/thinsnap is built; the image $(cat "$images/name") is in $images"

heading 'Machine'
where=$("$cache/bin/vmrun" -where)
echo "the rest runs on the $where"
CGO_ENABLED=0 go build -o bin/demo ./integration/demo
exec "$cache/bin/vmrun" bin/demo "$images"
