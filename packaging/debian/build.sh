#!/bin/bash
# build.sh DIRECTORY: builds thinsnap_VERSION_ARCHITECTURE.deb in the directory, and prints its path. The architecture is
# GOARCH, or the machine's own. The build is reproducible: the same commit and Go version give the same bytes. Older packages
# of that architecture are removed from the directory. THINSNAP_DEB_COMPRESSION is dpkg-deb's, by default xz.
set -euo pipefail

here=$(dirname "$(realpath "$0")")
mkdir -p "$1"
out=$(realpath "$1")
cd "$here/../.."
# The cache has Go only if the machine's own is too old.
PATH=${THINSNAP_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/thinsnap}/go/bin:$PATH:/usr/local/go/bin

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
umask 022

# Tag v1.2.3 is version 1.2.3; the commits after it are 1.2.3+4.gabcdef. Before the first tag, versions are below 0.1, and
# sorted by commit time.
version=$(git describe --tags --match 'v[0-9]*' 2>/dev/null | sed 's/^v//; s/-\([0-9]*\)-g/+\1.g/; s/-/~/g') && [ -n "$version" ] ||
	version=0~git$(TZ=UTC0 git show -s --date=format-local:%Y%m%d%H%M%S --format=%cd.%h)
[ -z "$(git status --porcelain --untracked-files=no)" ] || version=$version+dirty
SOURCE_DATE_EPOCH=$(git show -s --format=%ct)
export SOURCE_DATE_EPOCH
arch=${GOARCH:-$(go env GOARCH)}
unset GOARCH # the tools below run on this machine
case $arch in
	amd64 | arm64) ;;
	*) echo "build.sh: GOARCH=$arch is not supported, only amd64 and arm64" >&2; exit 1 ;;
esac

root=$work/root
doc=$root/usr/share/doc/thinsnap
mkdir -p "$root"/{DEBIAN,etc/thinsnap} "$root"/usr/{bin,lib/systemd/system} "$doc" \
	"$root"/usr/share/{bash-completion/completions,zsh/vendor-completions,fish/vendor_completions.d,lintian/overrides,man/man1,man/man5}

CGO_ENABLED=0 GOARCH=$arch go build -trimpath -o "$root/usr/bin/thinsnap" \
	-ldflags "-s -w -X main.version=$version -X main.revision=$(git rev-parse HEAD)" ./cmd/thinsnap
for unit in thinsnap.service thinsnap.socket; do
	sed 's|/usr/local/bin/|/usr/bin/|; s|^Documentation=|&man:thinsnap(1) |' cmd/thinsnap/systemd/$unit \
		> "$root/usr/lib/systemd/system/$unit"
done
# Every key but version is commented out, so that unchanged keys follow the program's defaults.
go run ./cmd/thinsnap config default | sed -E '/^version = /!s/^[a-z_]+ = /#&/' > "$root/etc/thinsnap/config.toml"
for shell in bash:bash-completion/completions/thinsnap zsh:zsh/vendor-completions/_thinsnap \
	fish:fish/vendor_completions.d/thinsnap.fish; do
	cp "cmd/thinsnap/completion/thinsnap.${shell%%:*}" "$root/usr/share/${shell#*:}"
done
for page in docs/man/*; do
	gzip -9n < "$page" > "$root/usr/share/man/man${page##*.}/${page##*/}.gz"
done

{
	printf 'thinsnap (%s) unstable; urgency=medium\n\n' "$version"
	printf '  * Built from revision %s.\n\n' "$(git rev-parse HEAD)"
	printf ' -- the thinsnap authors <thinsnap@users.noreply.github.com>  %s\n' "$(git show -s --date=rfc --format=%cd)"
} | gzip -9n > "$doc/changelog.gz"
cp "$here/copyright" "$doc/"
# The licences of all linked modules.
go list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}} {{.Dir}}{{end}}{{end}}' ./cmd/thinsnap | sort -u |
	while read -r module release dir; do
		printf '==== %s %s\n\n' "$module" "$release"
		find "$dir" -maxdepth 1 -type f \( -iname 'licen[cs]e*' -o -iname 'copying*' -o -iname 'notice*' \) | sort | xargs -d '\n' cat
		echo
	done > "$work/modules"
{
	printf '==== Go %s\n\n' "$(go env GOVERSION)"
	cat "$(go env GOROOT)/LICENSE"
	echo
	cat "$work/modules"
} | gzip -9n > "$doc/linked-modules.gz"
cp "$here/lintian-overrides" "$root/usr/share/lintian/overrides/thinsnap"

cp "$here"/{postinst,prerm,postrm} "$root/DEBIAN/"
chmod 755 "$root"/DEBIAN/*
echo /etc/thinsnap/config.toml > "$root/DEBIAN/conffiles"
# Computed like dpkg-gencontrol: the size of a directory depends on its file system.
size=$(find "$root" -path "$root/DEBIAN" -prune -o -type f -printf '%s\n' -o -printf '1\n' | awk '{ n += int(($1 + 1023) / 1024) } END { print n }')
sed "s/@VERSION@/$version/; s/@ARCH@/$arch/; s/@SIZE@/$size/" "$here/control" > "$root/DEBIAN/control"
(cd "$root" && find usr -type f | LC_ALL=C sort | xargs md5sum) > "$root/DEBIAN/md5sums"
find "$root" -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +
deb=$out/thinsnap_${version}_$arch.deb
rm -f "$out"/thinsnap_*_"$arch".deb
dpkg-deb --root-owner-group "-Z${THINSNAP_DEB_COMPRESSION:-xz}" --build "$root" "$deb" > /dev/null
echo "$deb"
