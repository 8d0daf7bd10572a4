#!/bin/bash
# version.sh: prints the version of the commit for packages. Tag v1.2.3 gives 1.2.3, and the fourth
# commit after it 1.2.3+4.gabcdef. Versions before the first tag are below 0.1, in the order of the
# commit times. THINSNAP_PACKAGE_VERSION overrides it.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")"

version=${THINSNAP_PACKAGE_VERSION:-}
if [ -z "$version" ]; then
	version=$(git describe --tags --match 'v[0-9]*' 2>/dev/null | sed 's/^v//; s/-\([0-9]*\)-g/+\1.g/; s/-/~/g') && [ -n "$version" ] ||
		version=0~git$(TZ=UTC0 git show -s --date=format-local:%Y%m%d%H%M%S --format=%cd.%h)
	[ -z "$(git status --porcelain --untracked-files=no)" ] || version=$version+dirty
fi
# The characters that both Debian and RPM accept. A hyphen would begin a package's revision.
[[ $version =~ ^[0-9][A-Za-z0-9.+~]*$ ]] || {
	echo "version.sh: $version is not a package version: it may have only letters, digits, and the characters . + ~" >&2
	exit 1
}
echo "$version"
