#!/bin/bash
# release.sh DIRECTORY: creates a release for amd64 and arm64 in a new directory: packages for
# Debian and for Fedora and RHEL, tarballs, the image as an OCI archive, bills of materials, and
# SHA256SUMS. The commit needs a tag vMAJOR.MINOR.PATCH or vMAJOR.MINOR.PATCH-PRERELEASE. For a
# trial, THINSNAP_PACKAGE_VERSION sets the version instead. docs/releases.md has the steps.
set -euo pipefail

here=$(dirname "$(realpath "$0")")
directory=$1
cd "$here/.."
die() {
	echo "release: $*" >&2
	exit 1
}

changes=$(git status --porcelain)
[ -z "$changes" ] || die "the work tree differs from the commit: commit or remove these first:"$'\n'"$changes"
if [ -z "${THINSNAP_PACKAGE_VERSION:-}" ]; then
	tag=$(git describe --exact-match --tags --match 'v[0-9]*' 2>/dev/null) ||
		die "this commit has no tag: create one, such as: git tag --annotate v0.1.0 (or, for a trial: make release VERSION=0.1.0~trial)"
	[[ $tag =~ ^v[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.]+)?$ ]] || die "the tag $tag is not a version: vMAJOR.MINOR.PATCH or vMAJOR.MINOR.PATCH-PRERELEASE"
	grep -q "^## \[${tag#v}\] - [0-9]" CHANGELOG.md || die "CHANGELOG.md has no section \"## [${tag#v}] - YYYY-MM-DD\""
	other=$(grep -rl newTag deploy | xargs grep -L "newTag: ${tag#v}\$" | head -n 1) || true
	[ -z "$other" ] || die "$other has another newTag than ${tag#v}"
fi
THINSNAP_PACKAGE_VERSION=$(packaging/version.sh)
export THINSNAP_PACKAGE_VERSION
version=$THINSNAP_PACKAGE_VERSION

[ ! -e "$directory" ] || die "$directory exists; remove it, or name another: make release RELEASE=DIRECTORY"
mkdir -p "$(dirname "$directory")"
work=$(mktemp -d "$(realpath "$(dirname "$directory")")/.release.XXXXXX")
trap 'rm -rf "$work"' EXIT
new=$work/new
mkdir "$new"
image=$new/thinsnap-$version-image.tar
for arch in amd64 arm64; do
	GOARCH=$arch packaging/build.sh "$new" deb rpm tar
done
THINSNAP_IMAGE_NAME=${THINSNAP_IMAGE_NAME:-ghcr.io/thinsnap/thinsnap:${version//[+~]/-}} packaging/image/build.sh "$image" amd64 arm64
for arch in amd64 arm64; do
	name=thinsnap-$version-linux-$arch
	tar -C "$work" -xzf "$new/$name.tar.gz" "$name/thinsnap"
	packaging/sbom.sh "$new/$name.cdx.json" "$arch" "$work/$name/thinsnap" "$image"
done
(
	cd "$new"
	for file in *~*; do # GitHub renames a published file with a ~
		[ ! -e "$file" ] || mv "$file" "${file//\~/-}"
	done
	sha256sum -- * >"$work/SHA256SUMS"
)
mv "$work/SHA256SUMS" "$new/"
mv "$new" "$directory"
echo "release: version $version is in $directory"
