#!/bin/bash
# inside.sh CACHE IMAGES THINSNAP: the part of the demo that needs root and device-mapper. All that it makes is in one
# directory, in a pool and in a containerd namespace that are called thinsnap-demo, and is gone when it ends.
set -euo pipefail

cache=$1 images=$2 binary=$3
work=$(mktemp -d "${TMPDIR:-/var/tmp}/thinsnap-demo.XXXXXX")
pids=()

heading() { printf '\n== %s\n' "$*"; }
# show COMMAND...: says what is run, and runs it.
show() {
	printf '$ %s\n' "$*"
	"$@"
}
thinsnap() { "$binary" --config "$work/thinsnap.toml" "$@"; }

# serve NAME READY COMMAND...: runs a program in the background and waits until the command READY succeeds.
serve() {
	local name=$1 ready=$2
	shift 2
	"$@" > "$work/$name.log" 2>&1 &
	local pid=$!
	pids=("$pid" "${pids[@]}")
	local _
	for _ in $(seq 600); do
		if ! kill -0 "$pid" 2> /dev/null; then
			echo "$name has ended" >&2
			return 1
		fi
		if eval "$ready" > /dev/null 2>&1; then
			return 0
		fi
		sleep 0.1
	done
	echo "$name does not answer" >&2
	return 1
}

finish() {
	local status=$? pid
	set +e
	if [ "$status" != 0 ]; then
		heading 'It failed; the logs end with'
		tail -n 20 "$work"/*.log
	fi
	if [ -S "$CONTAINERD_ADDRESS" ]; then
		nerdctl ps -aq | xargs -r "$cache/bin/nerdctl" rm --force > /dev/null
	fi
	for pid in "${pids[@]}"; do # the last started first
		kill "$pid" 2> /dev/null && wait "$pid"
	done
	if [ -e "$work/thinsnap.toml" ]; then
		thinsnap pool destroy --yes > /dev/null || [ "$status" != 0 ] || status=1
	fi
	rm -rf "$work" || status=1
	rmdir /run/containerd/runc/thinsnap-demo 2> /dev/null # runc leaves it, empty
	exit "$status"
}

# The programs' own variables: what is shown can be typed as it is.
export PATH=$cache/bin:$cache/debian/runc/usr/sbin:$cache/debian/docker-registry/usr/bin:$PATH
export CONTAINERD_ADDRESS=$work/containerd.sock CONTAINERD_NAMESPACE=thinsnap-demo CONTAINERD_SNAPSHOTTER=thinsnap
export NERDCTL_TOML=$work/nerdctl.toml DOCKER_CONFIG=$work/docker
trap finish EXIT

cat > "$work/thinsnap.toml" <<END
version = 1
root = "$work/thinsnap"
address = "$work/thinsnap.sock"
admin_address = "$work/admin.sock"
[pool]
name = "thinsnap-demo"
[pool.loop]
data_size = "20GiB"
metadata_size = "64MiB"
END
cat > "$work/containerd.toml" <<END
version = 4
root = "$work/containerd"
state = "$work/state"
imports = []
debug.level = "warn"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
  "io.containerd.nri.v1.nri"]

[plugins.'io.containerd.server.v1.grpc']
  address = "$CONTAINERD_ADDRESS"
[plugins.'io.containerd.server.v1.ttrpc']
  address = "$CONTAINERD_ADDRESS.ttrpc"
[plugins.'io.containerd.shim.v1.manager']
  socket_dir = "$work/shim"
[plugins.'io.containerd.internal.v1.opt']
  path = "$work/opt"

[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
  platform = "linux/amd64"
  snapshotter = "thinsnap"

[proxy_plugins.thinsnap]
  type = "snapshot"
  address = "$work/thinsnap.sock"
  platform = "linux/amd64"
  capabilities = ["remap-ids"]
  [proxy_plugins.thinsnap.exports]
    root = "$work/thinsnap"
END
cat > "$NERDCTL_TOML" <<END
data_root = "$work/nerdctl"
cgroup_manager = "cgroupfs"
cni_path = "$work/cni"
cni_netconfpath = "$work/net.d"
snapshotter = "thinsnap"
namespace = "thinsnap-demo"
address = "$CONTAINERD_ADDRESS"
END

heading 'A registry, thinsnap with a new pool, and containerd'
export REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY=$images/registry
serve registry "grep -q 'listening on' '$work/registry.log'" \
	docker-registry serve "$(dirname "$0")/../image/registry.yml"
registry=$(sed -n 's/.*listening on \(127[0-9.:]*\).*/\1/p' "$work/registry.log")
image=$registry/$(cat "$images/name")
serve thinsnap 'thinsnap info' "$binary" --config "$work/thinsnap.toml" serve
serve containerd 'ctr version' containerd --config "$work/containerd.toml"
echo "registry $registry, $("$binary" version | head -1), $(containerd --version | cut -d' ' -f1,3)"

heading 'Pull an image: each layer becomes a thin volume'
echo "\$ ctr images pull --plain-http $image"
ctr images pull --plain-http "$image" > "$work/pull.log"
tail -1 "$work/pull.log"

heading 'Run a container that writes files'
show nerdctl run --name writer --net none "$image" \
	sh -c 'grep " / " /proc/mounts; echo "written by the container" > /hello; rm -r /var/cache; ls -l /hello'

heading 'Commit it to a new image, and run that'
show nerdctl commit writer hello:1
show nerdctl run --name reader --net none hello:1 cat /hello

heading 'What thinsnap says'
show thinsnap info
echo
show thinsnap tree

heading 'Done: removing it all'
