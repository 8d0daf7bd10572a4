#!/bin/bash
# restore.sh MODE TOP [running]: unpacks the root and the pool of an earlier version at their path, TOP. With "running" it
# also restores the state in the kernel: the pool, the active volumes, and their mounts.
set -euo pipefail
mode=$1 top=$2 running=${3:-}
tar -xJSf "$(dirname "$0")/$mode.tar.xz" -C "$top"
cd "$top"
case $mode in
direct-lvm)
	losetup --find --show disk >/dev/null
	;;
existing)
	data=$(losetup --find --show data)
	metadata=$(losetup --find --show metadata)
	dmsetup create by-hand --table "0 $(($(blockdev --getsz "$data"))) thin-pool $metadata $data 128 0"
	;;
esac
[[ $running ]] || exit 0
case $mode in
direct-lvm)
	lvchange --activate y old/pool
	pool=old-pool
	;;
existing)
	pool=by-hand
	;;
loop)
	data=$(losetup --find --show root/pool/data)
	metadata=$(losetup --find --show root/pool/metadata)
	pool=old
	uuid=$(awk -v pool=$pool '$1 == pool { print $2 }' kernel.info)
	dmsetup create $pool --uuid "$uuid" --table "$(sed -n "s|^$pool: \(.*\) thin-pool [^ ]* [^ ]* |\1 thin-pool $metadata $data |p" kernel.table)"
	losetup --detach "$data" "$metadata" # when the pool is removed
	;;
esac
number=$(dmsetup info -c --noheadings --separator : -o major,minor $pool)
while read -r name start length target _ id; do
	[[ $target = thin ]] || continue
	name=${name%:}
	dmsetup create "$name" --uuid "$(awk -v name="$name" '$1 == name { print $2 }' kernel.info)" \
		--table "$start $length thin $number $id"
done <kernel.table
while read -r target source type options; do
	mkdir -p "$target"
	case $type,$options in
	xfs,*) options=nouuid ;;
	*norecovery*) options=noload,nobarrier ;;
	*) options=rw ;;
	esac
	mount -t "$type" -o "$options" "$source" "$target"
done <kernel.mounts
