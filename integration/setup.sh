#!/bin/bash
# setup.sh [PART...]: installs on a Debian machine what thinsnap's tests and its demo need. Prints nothing if nothing is
# missing. Downloads are unpacked into the cache, except those installed by apt-get. PART is one of
#   go         Go for this module, if the machine has none: enough for a build, on any machine
#   nfpm       the builder of packages, on any machine
#   packages   go, and Debian packages, by apt-get; starts no service
#   packaging  more Debian packages, for the tests of thinsnap's package, manual pages and completion
#   kernel     the kernel of the machine's Debian release, or of the suite $THINSNAP_KERNEL (trixie, sid, …). The
#              machine's own boot setup and list of packages stay unchanged
#   debian     Debian packages that conflict with Docker's or start a service
#   systemd    a disk image of a Debian with systemd and containerd: integration/systemd/root.sh
#   chromium   Debian's headless Chromium, by apt-get, for the test of the page
#   vmrun containerd nerdctl kustomize lint gotestsum vuln gofail sbom     programs, built into the cache's bin directory
#   containerd-1.7 containerd-2.1 containerd-2.3 docker docker-26 kubelet   for test-all and the matrix: older containerds,
#              each in a directory of its own, Docker of two Debian suites, and a kubelet, which takes minutes to build
#   qemu-user  Debian's emulator of arm64 programs, for test-all
#   uml        Debian's newest user-mode Linux, a kernel that runs as a program, for make bench NATIVE=1
# By default it installs all parts except those of test-all.
# The cache is $THINSNAP_CACHE, else $XDG_CACHE_HOME/thinsnap, else ~/.cache/thinsnap.
set -Eeuo pipefail
cd "$(dirname "$0")/.."

cache=${THINSNAP_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/thinsnap}
packages=(
	busybox-static ca-certificates criu dmsetup e2fsprogs fakeroot gcc git iproute2 iptables jq kmod libc6-dev libseccomp2 lvm2 make
	mmdebstrap patch qemu-system-x86 skopeo strace thin-provisioning-tools umoci xfsprogs xz-utils zstd
)
packaging=(bash-completion fish lintian man-db mandoc rpm secilc systemd zsh)
browser=(chromium-headless-shell fonts-dejavu-core)
unpacked=(containerd containernetworking-plugins docker-registry prometheus runc)

say() { echo "setup: $*" >&2; }
die() {
	say "$*"
	exit 1
}

as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		die "needs root for: $* (sudo is missing)"
	fi
}

scratch=$(mktemp -d)
guard=
cleanup() {
	rm -rf "$scratch"
	if [ -n "$guard" ]; then as_root rm -f "$guard"; fi
}
trap cleanup EXIT
trap 'say "failed: $BASH_COMMAND"' ERR

# quietly COMMAND...: shows the command's output only if it fails.
quietly() {
	"$@" >"$scratch/log" 2>&1 || {
		local status=$?
		cat "$scratch/log" >&2
		return $status
	}
}

# with_fresh_index COMMAND...: an old package index names files that the mirror has deleted, and a new machine has no
# index.
with_fresh_index() {
	"$@" >"$scratch/first" 2>&1 && return
	say "updating the package index"
	quietly as_root apt-get update -q && quietly "$@"
}

check_machine() {
	command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
		die "apt-get is missing: this needs Debian 12 or newer"
	[ "$(dpkg --print-architecture)" = amd64 ] || die "this needs an amd64 machine"
}

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

install_packages() {
	local missing=() p
	for p in "$@"; do
		installed "$p" || missing+=("$p")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	say "installing Debian packages: ${missing[*]}"
	# Debian's way to keep packages from starting their services (deb-systemd-invoke(1p), invoke-rc.d(8)).
	if [ ! -e /usr/sbin/policy-rc.d ]; then
		guard=/usr/sbin/policy-rc.d
		printf '#!/bin/sh\nexit 101\n' | as_root tee "$guard" >/dev/null
		as_root chmod 755 "$guard"
	fi
	with_fresh_index as_root env DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -q --no-install-recommends "${missing[@]}" </dev/null
	if [ -n "$guard" ]; then
		as_root rm -f "$guard"
		guard=
	fi
}

# unpack DIRECTORY PACKAGE...: downloads packages and unpacks them together, completely or not at all.
unpack() {
	local dir=$1
	shift
	extract "$dir.new" "$@"
	check_libraries "$dir.new"
	rm -rf "$dir" && mv "$dir.new" "$dir"
}

# extract DIRECTORY PACKAGE...: downloads packages and unpacks them together into a new directory.
extract() {
	local dir=$1 deb
	shift
	rm -rf "$scratch/deb"
	mkdir -p "$scratch/deb" "$(dirname "$dir")"
	(cd "$scratch/deb" && with_fresh_index apt-get "${suite_options[@]}" download -q "$@")
	rm -rf "$dir" && mkdir "$dir"
	for deb in "$scratch"/deb/*.deb; do
		dpkg-deb -x "$deb" "$dir"
	done
	merge_usr "$dir"
}

# merge_usr DIRECTORY: /bin, /sbin and /lib are links into /usr on Debian, but some packages still bring directories.
merge_usr() {
	local name
	for name in bin sbin lib; do
		if [ -d "$1/$name" ] && [ ! -L "$1/$name" ]; then
			mkdir -p "$1/usr/$name"
			cp -a "$1/$name/." "$1/usr/$name/"
			rm -r "${1:?}/$name"
		fi
	done
}

setup_packages() {
	install_packages "${packages[@]}"
	setup_go
}

setup_chromium() { install_packages "${browser[@]}"; }
setup_packaging() { install_packages "${packaging[@]}"; }

# setup_go installs a Go for this module. Since 1.21, Go fetches the version in go.mod by itself; an older Go can fetch
# it as a module.
setup_go() {
	go list -m >/dev/null 2>&1 && return
	local version
	version=$(awk '$1 == "go" { print $2 }' go.mod)
	if ! command -v go >/dev/null; then
		command -v apt-get >/dev/null || die "Go $version or newer is needed: install it from https://go.dev/dl/"
		install_packages ca-certificates golang-go
		go list -m >/dev/null 2>&1 && return
	fi
	say "fetching Go $version"
	local module dir
	module=golang.org/toolchain@v0.0.1-go$version.linux-$(cd "$scratch" && go env GOHOSTARCH)
	dir=$(cd "$scratch" && GO111MODULE=on GOFLAGS= go mod download -json "$module" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p') &&
		[ -d "$dir" ] ||
		die "Go $version or newer is needed, but the download failed: install it from https://go.dev/dl/"
	rm -rf "$cache/go" "$cache/go.new"
	mkdir -p "$cache"
	cp -r "$dir" "$cache/go.new"
	chmod -R u+w "$cache/go.new"
	chmod a+x "$cache/go.new"/bin/* "$cache/go.new"/pkg/tool/*/*
	mv "$cache/go.new" "$cache/go"
	hash -r # forget where the other one was
}

setup_kernel() {
	local suite=${THINSNAP_KERNEL:-} kernels package release parts
	kernels=$cache/kernel${suite:+-$suite}
	compgen -G "$kernels/*/lib/modules/*/modules.dep" >/dev/null && return
	if [ -n "$suite" ]; then use_suite "$suite"; fi
	package=$(dependencies linux-image-amd64 'linux-image-[0-9].*')
	if [ -z "$package" ] && [ -z "$suite" ]; then
		say "updating the package index"
		quietly as_root apt-get update -q
		package=$(dependencies linux-image-amd64 'linux-image-[0-9].*')
	fi
	[ -n "$package" ] || die "apt has no package linux-image-amd64: this needs Debian"
	say "unpacking the kernel package $package"
	release=${package#linux-image-}
	# Since Linux 7 the image's package has no files, but depends on three packages that have.
	parts=$(dependencies "$package" "linux-[a-z]*-$release")
	# shellcheck disable=SC2086 # words
	unpack_kernel "$release" "$kernels/$release" "$package" $parts
	suite_options=()
}

# dependencies PACKAGE EXPRESSION: prints the dependencies whose names match the expression.
dependencies() { apt-cache "${suite_options[@]}" depends "$1" 2>/dev/null | sed -n "s/^ *Depends: \($2\)\$/\1/p"; }

# Options that make apt read another suite than the machine's own.
suite_options=()

# use_suite SUITE: makes apt read that suite of the machine's own Debian mirror, with an index below $scratch.
use_suite() {
	local dir=$scratch/apt mirror
	find_mirror() {
		mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | head -1)
		[ -n "$mirror" ]
	}
	if ! find_mirror; then
		say "updating the package index"
		quietly as_root apt-get update -q
		find_mirror || die "apt has no Debian mirror: this needs Debian"
	fi
	say "reading the package index of Debian $1"
	mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $1 main" >"$dir/sources.list"
	suite_options=(
		-oDir::Etc::SourceList="$dir/sources.list" -oDir::Etc::SourceParts=/dev/null
		-oDir::State::Lists="$dir/lists" -oDir::Cache="$dir/cache" -oAPT::Sandbox::User=
	)
	quietly apt-get "${suite_options[@]}" -q update
}

# unpack_kernel RELEASE DIRECTORY PACKAGE...
unpack_kernel() {
	local release=$1 dir=$2 image
	shift 2
	unpack "$dir.unpacked" "$@"
	image=$dir.unpacked/boot/vmlinuz-$release
	[ -e "$image" ] || image=$dir.unpacked/usr/lib/modules/$release/vmlinuz
	mkdir -p "$dir.ready/boot"
	mv "$image" "$dir.ready/boot/vmlinuz-$release"
	mv "$dir.unpacked/usr/lib" "$dir.ready/lib"
	PATH=$PATH:/usr/sbin:/sbin depmod -b "$dir.ready" "$release"
	rm -rf "$dir.unpacked" "$dir"
	mv "$dir.ready" "$dir"
}

# setup_uml unpacks the newest user-mode Linux, with the C library of its own suite.
setup_uml() {
	local dir=$cache/uml new=$cache/uml.new release
	compgen -G "$dir/lib/modules/*/modules.dep" >/dev/null && return
	install_packages patchelf
	use_suite sid
	say "unpacking the Debian package user-mode-linux"
	extract "$dir.unpacked" user-mode-linux libc6
	rm -rf "$new" && mkdir -p "$new/lib"
	mv "$dir.unpacked/usr/bin/linux.uml" "$new/linux"
	mv "$dir.unpacked/usr/lib/uml/modules" "$new/lib/modules"
	mv "$dir.unpacked/usr/lib/x86_64-linux-gnu" "$new/libc"
	release=$(ls "$new/lib/modules")
	PATH=$PATH:/usr/sbin:/sbin depmod -b "$new" "$release"
	patchelf --set-interpreter "$dir/libc/ld-linux-x86-64.so.2" --set-rpath "$dir/libc" "$new/linux"
	rm -rf "$dir.unpacked" "$dir" && mv "$new" "$dir"
	suite_options=()
}

setup_debian() {
	local p
	for p in "${unpacked[@]}"; do
		[ -d "$cache/debian/$p" ] && continue
		say "unpacking the Debian package $p"
		unpack "$cache/debian/$p" "$p"
	done
	# Programs of guests that the machine may lack.
	if [ ! -e /usr/lib/systemd/systemd-udevd ] && [ ! -d "$cache/debian/guest" ]; then
		say "unpacking the Debian package udev"
		unpack "$cache/debian/guest" udev
	fi
}

setup_qemu-user() {
	[ -d "$cache/debian/qemu-user-static" ] && return
	say "unpacking the Debian package qemu-user-static"
	unpack "$cache/debian/qemu-user-static" qemu-user-static
	find "$cache/debian/qemu-user-static/usr/bin" ! -type d ! -name qemu-aarch64-static -delete
}

# setup_systemd makes the disk again when its packages or its scripts change.
setup_systemd() {
	local dir=$cache/systemd key
	key=$(cat integration/systemd/root.sh integration/image/layers.sh /etc/debian_version | sha256sum)
	[ "$(cat "$dir/stamp" 2>/dev/null)" != "$key" ] || return 0
	say "installing a Debian with systemd on a disk image"
	rm -f "$dir/stamp"
	integration/systemd/root.sh "$dir/root.img"
	echo "$key" >"$dir/stamp"
}

# setup_docker [SUFFIX SUITE] unpacks the newest Docker that Debian has, or that of another suite.
setup_docker() {
	local dir=$cache/debian/docker${1:-}
	[ -d "$dir" ] && return
	use_suite "${2:-sid}"
	say "unpacking the Debian packages docker.io docker-cli docker-buildx"
	unpack "$dir" docker.io docker-cli docker-buildx
	suite_options=()
}

# check_libraries DIRECTORY: unpacking a package does not bring its dependencies.
check_libraries() {
	local file missing
	find "$1" -type f -perm -u+x | while read -r file; do
		# ldd fails on files that are no dynamic programs.
		missing=$({ ldd "$file" 2>/dev/null || true; } | awk '/not found/ { print $1 }' | xargs)
		[ -z "$missing" ] || die "$file lacks the libraries $missing"
	done
}

# build_tools NAME [DIRECTORY]: builds the tools of integration/tools/NAME.mod into the cache's bin, or into another
# directory of the cache. It does so if a tool is missing, or if the versions or Go have changed.
build_tools() {
	local mod=integration/tools/$1.mod dir=$cache/${2:-bin} key program ldflags=
	local stamp=$dir/.$1.built
	# Without it a kubelet does not know its version.
	[ "$1" != kubelet ] || ldflags="-X k8s.io/component-base/version.gitVersion=$(sed -n 's|.*k8s.io/kubernetes \(v[^ ]*\).*|\1|p' "$mod")"
	key=$(cat "$mod" "${mod%.mod}.sum" <(go version) <([ -z "$ldflags" ] || echo "$ldflags") | sha256sum)
	if [ "$(cat "$stamp" 2>/dev/null)" = "$key" ]; then
		for program in $(tools_of "$mod"); do
			[ -x "$dir/$program" ] || key=rebuild
		done
		[ "$key" = rebuild ] || return 0
		key=$(cat "$stamp")
	fi
	say "building $(tools_of "$mod" | xargs)"
	mkdir -p "$dir"
	GOFLAGS= CGO_ENABLED=0 quietly go build -modfile="$mod" -mod=readonly -trimpath -ldflags "$ldflags" -o "$dir/" tool
	echo "$key" >"$stamp"
}

# tools_of MODFILE lists the programs of its tool block. A path may end with a major version.
tools_of() { go mod edit -json "$1" | sed -n '/"Tool"/,/\]/{s|/v[0-9]*"|"|;s|.*"Path": ".*/\(.*\)".*|\1|p}'; }

setup_vmrun() {
	mkdir -p "$cache/bin"
	CGO_ENABLED=0 quietly go build -o "$cache/bin/vmrun" ./integration/vm/vmrun
}

case $* in
go | "go nfpm") ;;
*) check_machine ;;
esac
if [ $# = 0 ]; then
	set -- packages packaging kernel debian systemd chromium vmrun gotestsum containerd nerdctl kustomize lint vuln gofail nfpm
fi
# The cache has a Go only if the machine has none that can build this module.
PATH=$cache/go/bin:$PATH:/usr/local/go/bin
for what in "$@"; do
	case $what in
	go | packages | packaging | kernel | debian | chromium | vmrun | systemd | docker | qemu-user | uml) "setup_$what" ;;
	docker-26) setup_docker -26 trixie ;;
	containerd-*) build_tools "$what" "$what" ;;
	lint) build_tools lint && build_tools actionlint ;;
	containerd | gofail | gotestsum | kubelet | kustomize | nerdctl | nfpm | sbom | vuln) build_tools "$what" ;;
	*) die "unknown part: $what" ;;
	esac
done
