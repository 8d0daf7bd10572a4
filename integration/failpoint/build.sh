#!/bin/bash
# build.sh OUT: builds thinsnap with its failpoints enabled, as the program OUT. gofail replaces the comments of
# failpoints by code, in a copy of the sources next to OUT.
#
# With `return`, a failpoint kills the program, like a crash; with `print` it prints that it was passed.
set -Eeuo pipefail

out=$(realpath -m "$1")
cd "$(dirname "$0")/../.."
cache=${THINSNAP_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/thinsnap}
sums=$PWD/integration/tools/gofail.sum
version=$(go list -modfile=integration/tools/gofail.mod -m -f '{{.Version}}' go.etcd.io/gofail)
copy=$out.src

rm -rf "$copy" && mkdir -p "$copy"
go list -deps -f '{{with .Module}}{{if .Main}}{{range $.GoFiles}}{{$.Dir}}/{{.}}{{"\n"}}{{end}}{{range $.EmbedFiles}}{{$.Dir}}/{{.}}{{"\n"}}{{end}}{{end}}{{end}}' ./cmd/thinsnap |
	sed -n "s|^$PWD/||p" | xargs cp --parents -t "$copy" go.mod go.sum
cd "$copy"

# A panic is no crash: the daemon answers the call with an error, and continues.
for dir in $(grep -rl '// gofail: var ' . | xargs dirname | sort -u); do
	sed -i 's|^\(\s*\)// gofail: var .*|&\n\1// crashHere()|' "$dir"/*.go
	cat >"$dir/crash.go" <<-EOF
		package $(basename "$dir")

		import "syscall"

		func crashHere() { _ = syscall.Kill(syscall.Getpid(), syscall.SIGKILL); select {} }
	EOF
	"$cache/bin/gofail" enable "$dir"
done
go mod edit -require="go.etcd.io/gofail@$version"
cat "$sums" >>go.sum
CGO_ENABLED=0 go build -mod=mod -trimpath -o "$out" ./cmd/thinsnap
rm -rf "$copy"
