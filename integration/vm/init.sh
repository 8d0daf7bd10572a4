# Follows first.sh: mounts the host's file system and hands over to the agent on it.
if [ -n "$(param probe)" ]; then
	echo "$(param probe)"
	poweroff -f
fi

options=trans=virtio,version=9p2000.L,msize=524288,cache=loose,ro
mount -t 9p -o $options host /host || die "cannot mount the host's file system"
lower=/host
# Programs that the host lacks, laid over its file system.
if mount -t 9p -o $options extra /extra 2>/dev/null; then
	lower=/extra:/host
fi
mount -t tmpfs -o size=90% tmpfs /rw
mkdir /rw/upper /rw/work
mount -t overlay -o lowerdir=$lower,upperdir=/rw/upper,workdir=/rw/work overlay /root ||
	die "cannot mount the root file system"
for dir in proc sys dev; do
	mount -o move /$dir /root/$dir
done
agent=$(sed -n 's/.*thinsnap\.agent=\([^ ]*\).*/\1/p' /root/proc/cmdline)
exec switch_root /root "$agent" -guest-init
