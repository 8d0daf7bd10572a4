# trim.sh ROOT: mmdebstrap runs it in the image's root after unpacking the packages. It records the
# packages for vulnerability scanners, as Debian's images without dpkg do: in one file each in
# /var/lib/dpkg/status.d.
set -eu
cd "$1"
rm -rf var/lib/dpkg
mkdir -p var/lib/dpkg/status.d proc run sys tmp
for deb in var/cache/apt/archives/*.deb; do
	name=$(dpkg-deb --field "$deb" Package)
	case $name in
	debconf | dpkg | libdb5.3 | libgssapi-krb5-2 | libicu* | libk5crypto3 | libkeyutils1 | libkrb5* | libnsl2 | libpython3* | \
		libsqlite3-0 | libssl3 | libtirpc* | media-types | python3* | tar)
		# Only Python, xfs_scrub and the installation of packages need these.
		dpkg-deb --fsys-tarfile "$deb" | tar --list | grep -v '/$' | xargs rm -f
		;;
	*) dpkg-deb --field "$deb" >"var/lib/dpkg/status.d/$name" ;;
	esac
done
rm -rf usr/lib/python3* usr/sbin/xfs_scrub* etc/apt etc/cron.* etc/hostname etc/init.d etc/python3* etc/resolv.conf var/cache/* var/lib/apt \
	var/log/* tmp/*
