#!/bin/bash
# build.sh DIRECTORY FORMAT...: builds packages of thinsnap in the directory, and prints their
# paths. FORMAT is deb, rpm or tar. GOARCH is amd64 or arm64, by default the machine's own. Older
# packages of the same format and architecture are removed from the directory.
# THINSNAP_DEB_COMPRESSION is the compression of a deb, by default xz.
#
# The build is reproducible: the same commit and Go version give the same bytes.
set -euo pipefail

here=$(dirname "$(realpath "$0")")
mkdir -p "$1"
out=$(realpath "$1")
shift
cd "$here/.."
cache=${THINSNAP_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/thinsnap}
# The cache has a Go only if the machine's own is too old.
PATH=$cache/go/bin:$PATH:/usr/local/go/bin

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
umask 022

arch=${GOARCH:-$(go env GOARCH)}
unset GOARCH # the tools below run on this machine
case $arch in
	amd64) rpm_arch=x86_64 ;;
	arm64) rpm_arch=aarch64 ;;
	*) echo "build.sh: GOARCH=$arch is not supported, only amd64 and arm64" >&2; exit 1 ;;
esac
THINSNAP_PACKAGE_VERSION=$(packaging/version.sh)
SOURCE_DATE_EPOCH=$(git show -s --format=%ct)
export THINSNAP_PACKAGE_VERSION SOURCE_DATE_EPOCH
version=$THINSNAP_PACKAGE_VERSION
export PACKAGE_ARCH=$arch # for nfpm.yaml
stage=$work/stage
mkdir "$stage"
packaging/stage.sh "$stage" "$arch" "$version"
ln -s "$PWD" "$work/repository"

# nfpm FORMAT FILE
nfpm() {
	{
		printf 'thinsnap (%s) unstable; urgency=medium\n\n' "$version"
		printf '  * Built from revision %s.\n\n' "$(git rev-parse HEAD)"
		printf ' -- the thinsnap authors <thinsnap@users.noreply.github.com>  %s\n' "$(git show -s --date=rfc --format=%cd)"
	} | gzip -9n >"$work/changelog.gz"
	find "$stage" -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +
	(cd "$work" && find stage/usr/share/doc stage/usr/share/man -type f | LC_ALL=C sort) |
		sed 's#^stage\(.*\)#  - {src: "stage\1", dst: "\1", type: doc, packager: rpm}#' >"$work/documents"
	sed "/^contents:/r $work/documents
		s/^  compression: xz\$/  compression: ${THINSNAP_DEB_COMPRESSION:-xz}/" packaging/nfpm.yaml >"$work/nfpm.yaml"
	(cd "$work" && "$cache/bin/nfpm" package --config nfpm.yaml --packager "$1" --target "$2" >log) || {
		cat "$work/log" >&2
		exit 1
	}
}

# tarball FILE: the same files in one directory, with the unit for /usr/local. The directories docs
# and deploy are those of the repository.
tarball() {
	local name=thinsnap-$version-linux-$arch
	local dir=$work/$name
	mkdir -p "$dir"/{completion,docs,man,systemd}
	cp "$stage/usr/bin/thinsnap" LICENSE "$stage/usr/share/doc/thinsnap/linked-modules.gz" "$dir/"
	cp README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md "$dir/"
	cp -r docs/. "$dir/docs/"
	cp -r deploy "$dir/"
	mv "$dir"/docs/man/* "$dir/man/"
	rmdir "$dir/docs/man"
	cp cmd/thinsnap/completion/* "$dir/completion/"
	cp cmd/thinsnap/systemd/* "$dir/systemd/"
	cp "$stage/etc/thinsnap/config.toml" "$dir/"
	find "$dir" -type d -exec chmod 755 {} + -o -type f -exec chmod u=rwX,go=rX {} +
	tar -C "$work" --owner=0 --group=0 --numeric-owner --sort=name --mtime="@$SOURCE_DATE_EPOCH" -cf - "$name" | gzip -9n >"$1"
}

for format in "$@"; do
	case $format in
		deb) name=thinsnap_${version}_$arch.deb; rm -f "$out"/thinsnap_*_"$arch".deb ;;
		rpm) name=thinsnap-$version-1.$rpm_arch.rpm; rm -f "$out"/thinsnap-*-1."$rpm_arch".rpm ;;
		tar) name=thinsnap-$version-linux-$arch.tar.gz; rm -f "$out"/thinsnap-*-linux-"$arch".tar.gz ;;
		*) echo "build.sh: unknown format $format: deb, rpm or tar" >&2; exit 1 ;;
	esac
	if [ "$format" = tar ]; then tarball "$out/$name"; else nfpm "$format" "$out/$name"; fi
	echo "$out/$name"
done
