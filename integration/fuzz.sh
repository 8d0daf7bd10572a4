#!/bin/bash
# fuzz.sh TIME: runs each fuzz target of the module for TIME (in the form of go test's -fuzztime), and fails if one
# finds an error. The failing input is then below the package's testdata/fuzz: commit it with the fix, as a test.
set -euo pipefail
cd "$(dirname "$0")/.."

time=$1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
corpus=$(go env GOCACHE)/fuzz # as for `go test -fuzz`
count=0 failed=0

# fuzz TARGET: runs a target of $dir and sets $out to its output. It uses two workers, because starting many takes most
# of a short run, and minimizes an input for less than the default minute.
fuzz() {
	out=$(cd "$dir" && "$scratch/test" -test.run '^$' -test.fuzz "^$1\$" -test.fuzztime "$time" \
		-test.parallel 2 -test.fuzzminimizetime 100x -test.fuzzcachedir "$corpus/$package" 2>&1)
}

for dir in $(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n 1 dirname | sort -u); do
	package=$(go list "$dir")
	go test -c -fuzz . -o "$scratch/test" "$dir"
	for target in $(cd "$dir" && "$scratch/test" -test.list '^Fuzz'); do
		count=$((count + 1))
		status=0
		fuzz "$target" || status=$?
		# Before Go 1.27, the end of the time on a busy machine can be reported as a failure (go.dev/issue/75804). A
		# real failure has more output.
		if [ $status != 0 ] && ! grep -qv -e '^fuzz: elapsed' -e "^--- FAIL: $target " -e '^ *context deadline exceeded$' \
			-e '^FAIL$' <<<"$out"; then
			echo "again ${dir#./} $target: it was stopped by its own deadline"
			status=0
			fuzz "$target" || status=$?
		fi
		if [ $status = 0 ]; then
			echo "ok    ${dir#./} $target: $(grep -o 'execs: [0-9]*' <<<"$out" | tail -1)"
		else
			failed=$((failed + 1))
			printf 'FAIL  %s %s\n%s\n' "${dir#./}" "$target" "$out"
		fi
	done
done
echo "$count fuzz targets, $time each: $failed failed"
[ "$count" -gt 0 ] && [ "$failed" = 0 ]
