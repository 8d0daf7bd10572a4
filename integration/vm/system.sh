# Follows first.sh in a guest with a system of its own: mounts its disk, and starts its init. The agent is a unit in
# /run.
disk=
for file in /sys/block/vd*/serial; do
	serial=
	read -r serial <"$file"
	if [ "$serial" = root ]; then
		disk=${file%/serial}
	fi
done
mount -t ext4 "/dev/${disk##*/}" /root || die "cannot mount the root disk"
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs /root/run
mkdir -p /root/run/host /root/run/systemd/system /root/usr/lib/modules
mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=loose,ro host /root/run/host ||
	die "cannot mount the host's file system"
mount -o bind "/root/run/host$(param modules)" /root/usr/lib/modules || die "cannot show the kernel's modules"
{
	echo "[Unit]"
	echo "SuccessAction=poweroff"
	echo "[Service]"
	echo "ExecStart=/run/host$(param agent) -guest-agent"
} >/root/run/systemd/system/guest-agent.service
for dir in proc sys dev; do
	mount -o move /$dir /root/$dir
done
exec switch_root /root /sbin/init
