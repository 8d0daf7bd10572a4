#!/bin/bash
# build.sh FILE [ARCHITECTURE...]: creates an OCI archive of the image in deploy/kubernetes,
# localhost/thinsnap with its tag, or of THINSNAP_IMAGE_NAME. The architecture is amd64, arm64 or
# both, by default the machine's own. The image has thinsnap's package and the Debian programs that
# it runs, from the mirrors in this machine's apt configuration. No foreign program is executed.
#
# The same commit, Go version and state of the mirrors give the same bytes. Without root, mmdebstrap
# needs the package uidmap and a range in /etc/subuid.
set -euo pipefail

here=$(dirname "$(realpath "$0")")
mkdir -p "$(dirname "$1")"
file=$(realpath "$1")
shift
[ $# -gt 0 ] || set -- "$(dpkg --print-architecture)"
tag=$(sed -n 's/^ *newTag: //p' "$here/../../deploy/kubernetes/overlays/containerd/install/kustomization.yaml")
name=${THINSNAP_IMAGE_NAME:-"localhost/thinsnap:$tag"}
for tool in mmdebstrap jq; do
	command -v "$tool" >/dev/null || { echo "image: $tool is missing: run integration/setup.sh packages" >&2; exit 1; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
say() { echo "image: $*" >&2; }

# For machine_sources, which the tests' images also use.
# shellcheck source=../../integration/image/layers.sh
. "$here/../../integration/image/layers.sh"

SOURCE_DATE_EPOCH=$(git -C "$here" show -s --format=%ct)
THINSNAP_PACKAGE_VERSION=$("$here/../version.sh")
export SOURCE_DATE_EPOCH THINSNAP_PACKAGE_VERSION
created=$(date --utc --date="@$SOURCE_DATE_EPOCH" +%FT%TZ)
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
machine_sources "$suite" >"$work/sources.list"
apt-config dump --format '%f "%v";%n' Acquire::http Acquire::https >"$work/apt.conf"
chmod 755 "$work" # a user's mmdebstrap reads it with other ids

# https://specs.opencontainers.org/image-spec/annotations/ describes org.opencontainers.image.*.
labels=$(jq -n --arg created "$created" --arg version "$THINSNAP_PACKAGE_VERSION" --arg revision "$(git -C "$here" rev-parse HEAD)" '{
	title: "thinsnap", description: "containerd snapshotter on device-mapper thin provisioning", licenses: "Apache-2.0",
	url: "https://github.com/thinsnap/thinsnap", source: "https://github.com/thinsnap/thinsnap",
	documentation: "https://github.com/thinsnap/thinsnap/tree/main/docs",
	created: $created, version: $version, revision: $revision
} | with_entries(.key |= "org.opencontainers.image." + .)')

blobs=$work/oci/blobs/sha256
mkdir -p "$blobs"

# blob MEDIATYPE: stores its input, and prints the descriptor.
blob() {
	local digest size
	cat >"$work/blob"
	digest=$(sha256sum <"$work/blob" | cut -d' ' -f1)
	size=$(stat -c %s "$work/blob")
	mv "$work/blob" "$blobs/$digest"
	jq -nc --arg type "$1" --arg digest "sha256:$digest" --argjson size "$size" '{mediaType: $type, digest: $digest, size: $size}'
}

# root ARCHITECTURE: prints the image's file system as a tar file.
root() {
	local arch=$1 deb path
	local exclude=()
	deb=$(GOARCH=$arch THINSNAP_DEB_COMPRESSION=none "$here/../build.sh" "$work/$arch" deb)
	mkdir "$work/$arch/files"
	dpkg-deb --fsys-tarfile "$deb" | tar -C "$work/$arch/files" -xf - ./etc ./usr/bin ./usr/lib/systemd \
		./usr/share/doc/thinsnap/copyright ./usr/share/doc/thinsnap/linked-modules.gz
	tar -C "$work/$arch/files" --owner=0 --group=0 --sort=name -cf "$work/$arch/files.tar" .
	for path in share/doc share/man share/locale share/info share/lintian share/bash-completion lib/udev lib/tmpfiles.d; do
		exclude+=(--dpkgopt="path-exclude=/usr/$path/*")
	done
	exclude+=(--dpkgopt='path-include=/usr/share/doc/*/copyright')
	# Packages are only unpacked: these programs need no configuration.
	mmdebstrap --variant=extract --architectures="$arch" \
		--include=base-files,coreutils,dash,e2fsprogs,lvm2,thin-provisioning-tools,util-linux,xfsprogs \
		"${exclude[@]}" --aptopt="$work/apt.conf" --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
		--extract-hook="$(cat "$here/trim.sh")" --extract-hook="tar-in $work/$arch/files.tar /" --skip=cleanup,output/dev \
		"$suite" "$work/$arch/root.tar" "$work/sources.list" >"$work/mmdebstrap.log" 2>&1 || {
		cat "$work/mmdebstrap.log" >&2
		exit 1
	}
}

manifests=()
for arch in "$@"; do
	root "$arch"
	layer=$(gzip -n <"$work/$arch/root.tar" | blob application/vnd.oci.image.layer.v1.tar+gzip)
	config=$(jq -nc --arg arch "$arch" --arg created "$created" --argjson labels "$labels" \
		--arg diff "sha256:$(sha256sum <"$work/$arch/root.tar" | cut -d' ' -f1)" '{
		created: $created, architecture: $arch, os: "linux", rootfs: {type: "layers", diff_ids: [$diff]},
		config: {
			Entrypoint: ["/usr/bin/thinsnap"], Cmd: ["serve"], Env: ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], WorkingDir: "/",
			Labels: $labels
		},
		history: [{created: $created, created_by: "packaging/image/build.sh"}]
	}' | blob application/vnd.oci.image.config.v1+json)
	manifest=$(jq -nc --argjson config "$config" --argjson layer "$layer" --argjson labels "$labels" '{
		schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json", config: $config, layers: [$layer], annotations: $labels
	}' | blob application/vnd.oci.image.manifest.v1+json)
	manifests+=("$(jq -c --arg arch "$arch" '. + {platform: {architecture: $arch, os: "linux"}}' <<<"$manifest")")
done
all=$(printf '%s\n' "${manifests[@]}" | jq -sc --argjson labels "$labels" '{
	schemaVersion: 2, mediaType: "application/vnd.oci.image.index.v1+json", manifests: ., annotations: $labels
}' | blob application/vnd.oci.image.index.v1+json)
jq -c --arg name "$name" '{
	schemaVersion: 2, mediaType: "application/vnd.oci.image.index.v1+json",
	manifests: [. + {annotations: {"io.containerd.image.name": $name, "org.opencontainers.image.ref.name": $name}}]
}' <<<"$all" >"$work/oci/index.json"
echo '{"imageLayoutVersion":"1.0.0"}' >"$work/oci/oci-layout"
tar -C "$work/oci" --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX --sort=name --mtime="@$SOURCE_DATE_EPOCH" \
	-cf "$file" blobs index.json oci-layout
say "$name for $*: $(du -h "$file" | cut -f1) in $file"
