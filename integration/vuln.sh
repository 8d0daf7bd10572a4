#!/bin/bash
# vuln.sh GOVULNCHECK: fails if code of thinsnap can reach a known vulnerability, in a dependency or in Go itself. What is
# known is asked of vuln.go.dev, or of what GOVULNDB names. Where that cannot be reached nothing is checked: this then says
# so, and is no failure, for it says nothing about thinsnap.
set -euo pipefail
cd "$(dirname "$0")/.."

status=0
out=$("$1" ${GOVULNDB:+-db "$GOVULNDB"} ./... 2>&1) || status=$?
if [ $status != 0 ] && [ $status != 3 ] && grep -q 'fetching vulnerabilities' <<<"$out"; then
	echo "skipped: govulncheck: the database of vulnerabilities cannot be reached; nothing was checked"
	grep 'fetching vulnerabilities' <<<"$out"
	exit 0
fi
echo "$out"
exit $status # 3 if something was found
