#!/bin/bash
# vuln.sh GOVULNCHECK [REPORT]: fails if thinsnap's code can reach a known vulnerability in a dependency or in Go, or if
# the check is not possible. It asks vuln.go.dev, or the database $GOVULNDB. Without a network, THINSNAP_NO_NETWORK=1
# makes an impossible check a skip. Vulnerabilities of the tools that tests and the demo run as root are only printed,
# because they are no part of thinsnap. REPORT gets the results as events of `go tool test2json`.
set -euo pipefail
cd "$(dirname "$0")/.."
govulncheck=$1 report=${2:-/dev/null}
: >"$report"

# event ACTION NAME [OUTPUT] adds an event to the report.
event() {
	printf '{"Action":"%s","Package":"github.com/thinsnap/thinsnap/integration","Test":"Vulnerabilities/%s","Output":"%s"}\n' \
		"$1" "$2" "${3:-}" >>"$report"
}

# look NAME PACKAGE...: its status is 0 if it found nothing, and 1 if it found a vulnerability or could not check.
look() {
	local name=$1 out status=0
	shift
	out=$("$govulncheck" ${GOVULNDB:+-db "$GOVULNDB"} "$@" 2>&1) || status=$?
	echo "$name: $out"
	case $status in
	0) event pass "$name" ;;
	3)
		if [ "$name" = thinsnap ]; then
			event fail "$name"
			return 1
		fi
		event pass "$name"
		;;
	*)
		if [ "${THINSNAP_NO_NETWORK:-}" = 1 ] && grep -q 'fetching vulnerabilities' <<<"$out"; then
			echo "skipped: $name: nothing was checked: the vulnerability database cannot be reached"
			event output "$name" "    vuln.sh:1: the vulnerability database cannot be reached; nothing was checked\n"
			event skip "$name"
			return 0
		fi
		echo "$name: nothing was checked. On a machine without a network, set THINSNAP_NO_NETWORK=1" >&2
		event fail "$name"
		return 1
		;;
	esac
}

failed=0
look thinsnap ./... || failed=1
for tool in containerd nerdctl; do
	mod=$PWD/integration/tools/$tool.mod
	mapfile -t packages < <(go mod edit -json "$mod" | sed -n '/"Tool"/,/\]/s|.*"Path": "\(.*\)".*|\1|p')
	GOFLAGS="-modfile=$mod -mod=readonly" CGO_ENABLED=0 look "$tool" "${packages[@]}" || failed=1
done
exit $failed
