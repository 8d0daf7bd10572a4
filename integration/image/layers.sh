# layers.sh is sourced by build.sh. make_debian, make_layers16 and make_busybox add the images "debian", "layers16" and
# "busybox" to the OCI layout WORK/oci.
#
# Debian's layers (the image's own tools set attributes, under chroot, because the machine may lack them):
#   1  Debian's essential packages
#   2  more packages: changed files, a file capability, device nodes
#   3  odd files: every kind and property of files that a layer can have
#   4  changes to them: deleted, replaced by another kind, hard links broken
#   5  entries that umoci does not write: opaque directories, a directory replaced by a file, times below a second

# Fixed, so that the same packages give the same layers.
export SOURCE_DATE_EPOCH=1700000000
packages="iputils-ping libcap2-bin attr"

# Tests read no manuals and sort no Unicode, and their guest is slow.
installed=usr-is-merged
left_out="share/doc share/man share/locale share/info share/zoneinfo lib/*/gconv lib/*/perl-base/unicore"

make_debian() {
	local work=$1 image=$1/oci:debian root=$1/bundle/rootfs
	say "installing Debian"
	debian "$work"

	umoci init --layout "$work/oci"
	umoci new --image "$image"
	umoci raw add-layer --image "$image" "$work/base.tar"
	umoci config --image "$image" --config.cmd /bin/bash --config.env PATH=/usr/sbin:/usr/bin:/sbin:/bin
	umoci --log=error unpack --image "$image" "$work/bundle"

	say "adding layers"
	find "$root" -mindepth 1 -delete
	tar -C "$root" --xattrs --xattrs-include='*' --numeric-owner -xf "$work/full.tar"
	repack "$work" bundle debian
	odd_files "$root"
	repack "$work" bundle debian
	changes "$root"
	repack "$work" bundle debian
	tar_layer "$work"
}

# repack WORK BUNDLE IMAGE: makes a layer of the bundle's changes.
repack() {
	umoci --log=error repack --refresh-bundle --image "$1/oci:$3" "$1/$2"
}

# debian WORK: makes WORK/base.tar with Debian's essential packages, and WORK/full.tar with $packages, too.
debian() {
	local work=$1 suite exclude=() path
	suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
	machine_sources "$suite" > "$work/sources.list"
	apt-config dump --format '%f "%v";%n' Acquire::http Acquire::https > "$work/apt.conf"
	set -f # the names have patterns for dpkg
	for path in $left_out; do
		exclude+=(--dpkgopt="path-exclude=/usr/$path/*")
	done
	set +f
	# A conversion of the old layout of /usr would need all of Perl.
	local clean='--exclude=./var/cache/apt/* --exclude=./var/lib/apt/* --exclude=./tmp/* --exclude=./etc/apt/* --exclude=./dev/*'
	local same='--sort=name --clamp-mtime --mtime=@'$SOURCE_DATE_EPOCH
	mmdebstrap --mode=root --variant=essential --include="$installed" "${exclude[@]}" \
		--aptopt="$work/apt.conf" \
		--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
		--setup-hook='mkdir -p "$1/etc/apt/preferences.d"' \
		--setup-hook='printf "Package: usrmerge\nPin: release *\nPin-Priority: -1\n" > "$1/etc/apt/preferences.d/usrmerge"' \
		--customize-hook="tar -C \"\$1\" --one-file-system --numeric-owner $clean $same -cf '$work/base.tar' ." \
		--customize-hook='rm -f "$1"/var/cache/apt/archives/*.deb' \
		--customize-hook="APT_CONFIG=\$MMDEBSTRAP_APT_CONFIG apt-get --yes --no-install-recommends --download-only install $packages" \
		--customize-hook='chroot "$1" sh -c "dpkg --install /var/cache/apt/archives/*.deb"' \
		"$suite" "$work/full.tar" "$work/sources.list" > "$work/mmdebstrap.log" 2>&1 || {
		cat "$work/mmdebstrap.log" >&2
		return 1
	}
}

# machine_sources SUITE: prints the sources of this Debian release in the configuration of the machine's apt.
machine_sources() {
	apt-get indextargets --format '$(ORIGIN)|$(CODENAME)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(SIGNED_BY)' \
		'Created-By: Packages' | sort -u | while IFS='|' read -r origin codename uri release component key; do
		[ "$origin" = Debian ] && [ "${codename%%-*}" = "$1" ] || continue
		case $key in
			/*) echo "deb [signed-by=$key] $uri $release $component" ;;
			*) echo "deb $uri $release $component" ;;
		esac
	done
}

# odd_files ROOT: makes files of every kind under ROOT/odd.
odd_files() {
	local o=$1/odd long
	long=$(printf 'n%.0s' $(seq 255))
	mkdir -p "$o"/{links,empty/dirs/three/deep,modes,owners,xattrs,names,nodes,times,sparse,gone/tree/of/files,swap,opaque/old/sub}

	echo one > "$o/links/a"
	ln "$o/links/a" "$o/links/b"
	ln "$o/links/a" "$o/empty/dirs/c"
	echo broken > "$o/links/x"
	ln "$o/links/x" "$o/links/y"
	ln -s a "$o/links/relative"
	ln -s /odd/links/a "$o/links/absolute"
	ln -s ../../nowhere "$o/links/dangling"
	ln -s "$(printf 't%.0s' $(seq 1000))" "$o/links/long"
	ln "$o/links/dangling" "$o/links/hard-to-symlink"

	truncate -s 2M "$o/sparse/all-hole"
	truncate -s 1M "$o/sparse/end" && echo end >> "$o/sparse/end"
	truncate -s 2M "$o/sparse/middle"
	echo middle | dd of="$o/sparse/middle" bs=1 seek=1000000 conv=notrunc status=none

	local mode
	for mode in 0000 0001 0400 0644 0755 0777 1755 2755 4755 6711 7777; do
		echo "$mode" > "$o/modes/$mode"
		chmod "$mode" "$o/modes/$mode"
		mkdir "$o/modes/dir-$mode"
		chmod "$mode" "$o/modes/dir-$mode"
	done

	local owner
	for owner in 0:0 1:2 1000:1000 65534:65534 100000:200000 4294967294:4294967294; do
		echo "$owner" > "$o/owners/$owner"
		mkdir "$o/owners/dir-$owner"
		ln -s "$owner" "$o/owners/link-$owner"
		chown -h "$owner" "$o/owners/$owner" "$o/owners/dir-$owner" "$o/owners/link-$owner"
	done
	chmod 4755 "$o/owners/1000:1000" # chown clears the bit: the order of the two matters to whoever unpacks

	echo x > "$o/xattrs/user"
	chroot "$1" setfattr -n user.thinsnap -v value "/odd/xattrs/user"
	chroot "$1" setfattr -n user.binary -v 0x00ff0a00 "/odd/xattrs/user"
	chroot "$1" setfattr -n user.long -v "$(printf 'v%.0s' $(seq 2000))" "/odd/xattrs/user"
	mkdir "$o/xattrs/dir"
	chroot "$1" setfattr -n user.dir -v directory "/odd/xattrs/dir"
	chroot "$1" setfattr -n trusted.thinsnap -v root "/odd/xattrs/user"
	echo x > "$o/xattrs/capability"
	chroot "$1" setcap cap_net_raw,cap_net_admin=ep "/odd/xattrs/capability"
	echo x > "$o/xattrs/capability-owned"
	chown 1000:1000 "$o/xattrs/capability-owned"
	chroot "$1" setcap cap_net_bind_service=ep "/odd/xattrs/capability-owned"

	touch "$o/names/ leading and  double spaces " "$o/names/back\\slash" "$o/names/quote\"'\$(x)" "$o/names/-dash" \
		"$o/names/new"$'\n'"line" "$o/names/latin-"$'\xe9' "$o/names/ümläut-日本" "$o/names/.hidden" "$o/names/$long"
	mkdir -p "$o/names/$long-dir"/ 2> /dev/null || mkdir -p "$o/names/${long:0:240}-dir/${long:0:200}/${long:0:200}"
	echo deep > "$o/names/${long:0:240}-dir/${long:0:200}/${long:0:200}/file"

	mknod "$o/nodes/null" c 1 3
	mknod "$o/nodes/block" b 7 200
	mknod "$o/nodes/large" c 300 70000
	mknod -m 0600 "$o/nodes/fifo" p

	touch -d @0 "$o/times/epoch"
	touch -d 2037-12-31T23:59:59Z "$o/times/far"
	touch -h -d @1234567890 "$o/links/relative"

	: > "$o/size-0"
	head -c 4096 /dev/zero > "$o/zeroes"
	seq 300000 > "$o/larger"

	echo gone | tee "$o"/gone/{file,tree/file,tree/of/file,tree/of/files/file} > "$o/gone/other"
	echo file > "$o/swap/file-to-dir"
	mkdir "$o/swap/dir-to-file" && echo in > "$o/swap/dir-to-file/in"
	echo file > "$o/swap/file-to-symlink"
	ln -s larger "$o/swap/symlink-to-file"
	mkdir "$o/swap/dir-to-symlink" && echo in > "$o/swap/dir-to-symlink/in"
	ln -s ../links "$o/swap/symlink-to-dir"
	mknod "$o/swap/fifo-to-node" p
	echo old | tee "$o"/opaque/{file,old/file,old/sub/file} > /dev/null
	settle "$o" 0
}

# settle DIR SECONDS: sets newer times to $SOURCE_DATE_EPOCH + SECONDS.
settle() {
	local time=@$((SOURCE_DATE_EPOCH + $2))
	find "$1" -newermt "$time" ! -path '*/times/*' -exec touch -h -d "$time" {} +
}

# changes ROOT: deletes, replaces and changes files of the layers below.
changes() {
	local o=$1/odd
	rm "$o/gone/other" "$o/gone/file"
	rm -r "$o/gone/tree/of"
	rm -r "$1/usr/share/lintian" "$1/media"
	rm "$o/swap/file-to-dir" && mkdir "$o/swap/file-to-dir" && echo in > "$o/swap/file-to-dir/in"
	rm "$o/swap/file-to-symlink" && ln -s ../larger "$o/swap/file-to-symlink"
	rm "$o/swap/symlink-to-file" && echo file > "$o/swap/symlink-to-file"
	rm "$o/swap/symlink-to-dir" && mkdir "$o/swap/symlink-to-dir" && echo in > "$o/swap/symlink-to-dir/in"
	rm "$o/swap/fifo-to-node" && mknod "$o/swap/fifo-to-node" c 1 5
	rm "$o/links/y" && echo alone > "$o/links/y"
	echo more >> "$o/larger"
	chmod 0700 "$o/modes/0644"
	chown 5:5 "$o/owners/0:0"
	chroot "$1" setfattr -x user.binary "/odd/xattrs/user"
	chroot "$1" setfattr -n user.thinsnap -v changed "/odd/xattrs/user"
	touch -d @1 "$o/times/epoch"
	# umoci detects changes of times, owners, modes and contents, but not of attributes.
	touch "$o/xattrs/user"
	settle "$1" 10
}

# tar_layer WORK: makes a layer with tar, with entries that other builders write and umoci does not.
tar_layer() {
	local work=$1 tree=$1/tree
	mkdir -p "$tree"/odd/{opaque/old,links,swap,times}
	: > "$tree/odd/opaque/old/.wh..wh..opq"
	echo new > "$tree/odd/opaque/old/new"
	: > "$tree/odd/links/.wh.absolute"
	echo file > "$tree/odd/swap/dir-to-file"
	ln -s /odd/links "$tree/odd/swap/dir-to-symlink"
	settle "$tree" 20
	touch -d @86400.123456789 "$tree/odd/times/nanoseconds"
	tar -C "$tree" --format=pax --numeric-owner --sort=name -cf "$work/tree.tar" odd
	umoci raw add-layer --image "$work/oci:debian" "$work/tree.tar"
}

# make_layers16 WORK: spreads the first two layers of Debian over 16 layers of the same size. The first has everything
# except regular files. It uses the results of make_debian, or debian, in WORK.
make_layers16() {
	local work=$1 image=$1/oci:layers16 tree=$1/layers16 n
	mkdir "$tree"
	tar -C "$tree" --xattrs --xattrs-include='*' --numeric-owner -xf "$work/full.tar"
	umoci new --image "$image"
	umoci config --image "$image" --config.cmd /bin/bash --config.env PATH=/usr/sbin:/usr/bin:/sbin:/bin
	find "$tree" -mindepth 1 ! -type f -printf '%P\n' | LC_ALL=C sort > "$tree.0"
	# The largest files first, each into the smallest layer so far.
	find "$tree" -type f -printf '%s %P\n' | LC_ALL=C sort -k1,1nr -k2 | awk -v "lists=$tree." '{
		least = 0
		for (i = 1; i < 16; i++) if (size[i] < size[least]) least = i
		size[least] += $1
		sub(/^[0-9]+ /, "")
		print >> (lists least)
	}'
	for n in $(seq 0 15); do
		tar -C "$tree" --format=pax --xattrs --xattrs-include='*' --numeric-owner --no-recursion \
			--verbatim-files-from -T "$tree.$n" -cf "$tree.tar"
		umoci raw add-layer --image "$image" "$tree.tar"
	done
}

# make_busybox WORK: adds Debian's static busybox and, in a second layer, some files.
make_busybox() {
	local work=$1 image=$1/oci:busybox root=$1/small/rootfs program
	program=$(dpkg -L busybox-static | grep 'bin/busybox$')
	umoci new --image "$image"
	umoci config --image "$image" --config.cmd /bin/sh --config.env PATH=/bin
	umoci --log=error unpack --image "$image" "$work/small"
	mkdir -p "$root"/{bin,dev,etc,proc,root,sys,tmp,var/empty}
	chmod 1777 "$root/tmp"
	echo root:x:0:0:root:/root:/bin/sh > "$root/etc/passwd"
	cp "$program" "$root/bin/busybox"
	"$program" --list | grep -vx busybox | while read -r name; do
		ln -s busybox "$root/bin/$name"
	done
	repack "$work" small busybox
	mkdir "$root/data"
	seq 1000 > "$root/data/numbers"
	rmdir "$root/var/empty"
	repack "$work" small busybox
}
