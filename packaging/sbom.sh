#!/bin/bash
# sbom.sh FILE ARCHITECTURE PROGRAM IMAGE: writes a software bill of materials in CycloneDX JSON:
# the Go modules of the program with their licences, and the Debian packages of the given
# architecture in the image, an OCI archive.
set -euo pipefail

file=$(realpath "$1") arch=$2 program=$(realpath "$3") image=$(realpath "$4")
here=$(dirname "$(realpath "$0")")
cache=${THINSNAP_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/thinsnap}
PATH=$cache/go/bin:$PATH:/usr/local/go/bin
cd "$here/.." # whose modules are in Go's cache
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
version=$(packaging/version.sh)

"$cache/bin/cyclonedx-gomod" bin -json -noserial -notimestamp -std -licenses -version "v$version" -output "$work/modules.json" \
	"$program" >"$work/log" 2>&1 || {
	cat "$work/log" >&2
	exit 1
}

# blob DIGEST: prints a blob of the image.
blob() { tar -xOf "$image" "blobs/sha256/${1#sha256:}"; }
index=$(tar -xOf "$image" index.json | jq -r '.manifests[0].digest')
manifest=$(blob "$index" | jq -r --arg arch "$arch" '.manifests[] | select(.platform.architecture == $arch).digest')
blob "$(blob "$manifest" | jq -r '.layers[0].digest')" | tar -C "$work" -xzf - ./usr/lib/os-release ./var/lib/dpkg/status.d
distribution=$(. "$work/usr/lib/os-release" && echo "$ID-$VERSION_ID")
for package in "$work"/var/lib/dpkg/status.d/*; do
	awk -F ': ' '$1 == "Package" || $1 == "Version" || $1 == "Architecture" { v[$1] = $2 }
		END { print v["Package"] "\t" v["Version"] "\t" v["Architecture"] }' "$package"
done | jq -Rn --arg distribution "$distribution" '[inputs | split("\t") |
	"pkg:deb/debian/\(.[0] | @uri)@\(.[1] | @uri)?arch=\(.[2])&distro=\($distribution)" as $purl | {
		"bom-ref": $purl, type: "library", name: .[0], version: .[1], purl: $purl,
		properties: [{name: "thinsnap:in", value: "image"}]
	}]' >"$work/packages.json"

jq --slurpfile packages "$work/packages.json" --arg created "$(date --utc --date="@$(git show -s --format=%ct)" +%FT%TZ)" '
	.metadata.timestamp = $created | del(.metadata.tools[].hashes) | .components += $packages[0]' "$work/modules.json" >"$file"
