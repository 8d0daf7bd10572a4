#!/bin/bash
# fuzz.sh TIME: runs every fuzz target of the module for that long (as go test's -fuzztime has it), one after the other, and
# fails if any of them finds something. What is found is written below the package's testdata/fuzz: kept with the fix, it is
# a test.
set -euo pipefail
cd "$(dirname "$0")/.."

time=$1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
corpus=$(go env GOCACHE)/fuzz # where `go test -fuzz` keeps it, too
count=0 failed=0

# fuzz TARGET: runs a target of $dir, and leaves what it printed in $out. Two workers: a short run on a machine of many
# processors would do little but start them. Nor is it to be spent on making what was found smaller, for which a minute is
# the default.
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
		# Before Go 1.27 the end of the time can itself be taken for a failure on a busy machine (go.dev/issue/75804). What is
		# found writes a file and says more.
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
