#!/bin/bash
# version.sh: prints the version of the commit, as packages have it. Tag v1.2.3 is 1.2.3, and the fourth commit after it is
# 1.2.3+4.gabcdef. Before the first tag, versions are below 0.1, and sorted by commit time. THINSNAP_PACKAGE_VERSION overrides it.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")"

version=${THINSNAP_PACKAGE_VERSION:-}
if [ -z "$version" ]; then
	version=$(git describe --tags --match 'v[0-9]*' 2>/dev/null | sed 's/^v//; s/-\([0-9]*\)-g/+\1.g/; s/-/~/g') && [ -n "$version" ] ||
		version=0~git$(TZ=UTC0 git show -s --date=format-local:%Y%m%d%H%M%S --format=%cd.%h)
	[ -z "$(git status --porcelain --untracked-files=no)" ] || version=$version+dirty
fi
# What Debian and RPM both take, without a hyphen, which separates a package's revision from the version.
[[ $version =~ ^[0-9][A-Za-z0-9.+~]*$ ]] || {
	echo "version.sh: $version is no version of a package: only letters, digits, and the characters . + ~" >&2
	exit 1
}
echo "$version"
