#!/bin/bash
# stage.sh DIRECTORY ARCHITECTURE VERSION: builds the program for amd64 or arm64, and puts all files
# of the packages into the directory, at their installed paths.
set -euo pipefail

root=$(realpath "$1") arch=$2 version=$3
here=$(dirname "$(realpath "$0")")
cd "$here/.."
umask 022
share=$root/usr/share doc=$root/usr/share/doc/thinsnap
mkdir -p "$root/etc/thinsnap" "$root"/usr/{bin,lib/systemd/system} "$doc/examples" \
	"$share"/{bash-completion/completions,zsh/vendor-completions,fish/vendor_completions.d,man/man1,man/man5}

CGO_ENABLED=0 GOARCH=$arch go build -trimpath -o "$root/usr/bin/thinsnap" \
	-ldflags "-s -w -X main.version=$version -X main.revision=$(git rev-parse HEAD)" ./cmd/thinsnap
for unit in cmd/thinsnap/systemd/*; do
	sed 's|/usr/local/bin/|/usr/bin/|; s|^Documentation=|&man:thinsnap(1) |' "$unit" >"$root/usr/lib/systemd/system/${unit##*/}"
done
# All keys except version are commented out, so that they follow the program's defaults.
go run ./cmd/thinsnap config default | sed -E '/^version = /!s/^[a-z_]+ = /#&/' >"$root/etc/thinsnap/config.toml"
for shell in bash:bash-completion/completions/thinsnap zsh:zsh/vendor-completions/_thinsnap \
	fish:fish/vendor_completions.d/thinsnap.fish; do
	cp "cmd/thinsnap/completion/thinsnap.${shell%%:*}" "$share/${shell#*:}"
done
for page in docs/man/*; do
	gzip -9n <"$page" >"$share/man/man${page##*.}/${page##*/}.gz"
done

# Links between documents stay; a link to a file that is not installed goes to the repository. The
# Kubernetes manifests reach docs/grafana as examples/grafana.
site=https://github.com/thinsnap/thinsnap/blob/main
examples=$(find docs -mindepth 1 -maxdepth 1 -type d ! -name man -printf '|%f')
for page in docs/*.md; do
	sed -E "s#\]\(\.\./deploy/#](examples/deploy/#g; s#\]\(\.\./#]($site/#g; s#\.\./docs/grafana#../grafana#; s#\]\((${examples#|})([/)])#](examples/\1\2#g" "$page" >"$doc/${page##*/}"
done
for page in README.md CHANGELOG.md; do
	sed -E "s#\]\(docs/#](#g; s#\]\(((CONTRIBUTING|SECURITY)\.md|LICENSE)#]($site/\1#g" "$page" >"$doc/$page"
done
cp docs/*.png "$doc/"
(cd docs && IFS='|' && cp -r ${examples#|} "$doc/examples/")
cp -r deploy "$doc/examples/"
sed -i 's#\.\./docs/grafana#../grafana#' "$doc/examples/deploy/kubernetes/monitoring/kustomization.yaml"

# The licences of all linked modules.
{
	printf '==== Go %s\n\n' "$(go env GOVERSION)"
	cat "$(go env GOROOT)/LICENSE"
	echo
	GOARCH=$arch go list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}} {{.Dir}}{{end}}{{end}}' ./cmd/thinsnap |
		sort -u | while read -r module release dir; do
		printf '==== %s %s\n\n' "$module" "$release"
		find "$dir" -maxdepth 1 -type f \( -iname 'licen[cs]e*' -o -iname 'copying*' -o -iname 'notice*' \) | sort | xargs -d '\n' cat
		echo
	done
} | gzip -9n >"$doc/linked-modules.gz"
find "$root" -type d -exec chmod 755 {} + -o -type f -exec chmod u=rwX,go=rX {} +
