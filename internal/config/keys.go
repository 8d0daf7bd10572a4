package config

import (
	"fmt"
	"strings"
)

// section is one table of the file with its keys in the order in which they are printed.
type section struct {
	name string // "" for the keys above the first table
	doc  string
	keys []key
}

// key is what a reader of the file is told about one key. Its default comes from Default.
type key struct {
	name    string // dotted, as error messages have it
	allowed string // ends the sentence "must be"; also the text of the error when a value is something else
	doc     string // whole sentences
}

// sections is the one description of the file: the printed default file, the reference in the documentation and the
// errors of Validate all come from it. Every field of Config has its entry here.
func sections() []section {
	return []section{
		{keys: []key{
			{"version", fmt.Sprint(Version), "The version of this file's format."},
			{"root", "an absolute path, and not /",
				"The directory of thinsnap's own data: its database and, in mode \"loop\", the two files of the pool. It is made if it is missing. One daemon works on it at a time."},
			{"address", socketRule(), "The unix socket that containerd talks to. It is made with mode 0600."},
			{"admin_address", socketRule() + ", other than address",
				"The unix socket of the commands info, ls, tree, inspect, top, page, check, pool status, pool extend and pool trim, and of metrics and profiles. It is made with mode 0600."},
			{"metrics_address", "empty or HOST:PORT",
				"A TCP address on which Prometheus metrics are served under /metrics, without authentication, for example \"127.0.0.1:9777\". They have no keys of snapshots in them, and nothing else is served there. Empty: metrics are on the admin socket only."},
		}},
		{"log", "What the daemon writes to standard error.", []key{
			{"log.level", anyOf("trace", "debug", "info", "warn", "error"), "The least severe messages that are written."},
			{"log.format", anyOf("text", "json"), "Lines of key=value pairs, or one JSON object a line."},
		}},
		{"pool", "The thin pool. Its name, mode and block size are fixed when it is made; its sizes are those that it is made with.", []key{
			{"pool.name", fmt.Sprintf("1 to %d letters, digits and the signs - _ . +, beginning with a letter or a digit", maxPoolName),
				"The name of the pool's mapped device, or of LVM's volume group; in mode \"existing\" the pool has its own. The names of all volumes begin with it. Two daemons on one machine need two names."},
			{"pool.mode", anyOf(modeNames()...),
				"Where the pool's space comes from. \"loop\": two sparse files below root, attached as loop devices. \"direct-lvm\": a disk that is given to the pool whole, on which LVM makes it. \"existing\": a thin pool that somebody else made, and goes on to look after. Where it is left out, it is \"direct-lvm\" if pool.direct_lvm.device is there, \"existing\" if pool.existing.device is, and else \"loop\"."},
			{"pool.block_size", fmt.Sprintf("a multiple of %v, at most %v", minBlockSize, maxBlockSize),
				"The unit in which the pool gives out space and shares it between snapshots. Small blocks copy less when a shared one is first written; large ones need less metadata. In mode \"existing\" the pool has its own, and this says nothing."},
			{"pool.min_free_space", "0% to 99%",
				"New snapshots are refused while less than this share of the pool's data or metadata space is free, so that running containers keep some. Free is what the pool has left, or the disk below its files if that is less. 0%: refused only when the pool has none left."},
			{"pool.autoextend_threshold", "a number from 1 to 100",
				"How many percent of the pool's data or metadata may be in use before the pool is made larger, while all goes on. 100: it never is. In mode \"existing\" thinsnap only warns at that point: who made the pool makes it larger."},
			{"pool.autoextend_percent", "a number from 1 to 100",
				"By how many percent of its size the data or the metadata grows each time."},
		}},
		{"pool.loop", "The files of a pool in mode \"loop\".", []key{
			{"pool.loop.data_size", fmt.Sprintf("at least %v", minDataSize),
				"The size of the data file. The file is sparse: it takes the space that is in use, and gives it back when discard is on."},
			{"pool.loop.data_limit", "0B, or at least pool.loop.data_size",
				"How large the data file may become by itself. 0B: as large as the disk that it lies on has room for."},
			{"pool.loop.metadata_size", fmt.Sprintf("a multiple of %v, from %v to %v", diskBlock, minMetadataSize, maxMetadataSize),
				"The size of the metadata file, sparse too. The kernel needs about 64 bytes for each block of each volume."},
		}},
		{"pool.direct_lvm", "The disk of a pool in mode \"direct-lvm\". LVM makes the volume group NAME and the pool NAME/pool on it, once, with NAME from pool.name.", []key{
			{"pool.direct_lvm.device", "empty or the absolute path of a block device",
				"The disk, of 1GiB at least. It must have nothing on it: no file system, no partition table, nothing of LVM's. A name below /dev/disk/by-id means the same disk after a restart; but that matters only until the pool is made, for from then on LVM finds it by what it has written there."},
			{"pool.direct_lvm.thinp_percent", "a number from 1 to 98",
				"The share of the disk that the pool's data gets, in percent. What is left is for the pool to be extended into."},
			{"pool.direct_lvm.thinp_metapercent", "a number from 1 to 49, and twice that no more than thinp_percent leaves",
				"The share of the disk that the pool's metadata gets, in percent, 15GiB at most. As much again should be left of the disk: when LVM extends the metadata for the first time, it makes a spare volume to repair it into."},
			{"pool.direct_lvm.force", "true or false",
				"Overwrite what is on the disk when the pool is made. A disk that is in use or in a volume group is refused nevertheless."},
		}},
		{"pool.existing", "The pool in mode \"existing\". thinsnap makes and removes its own volumes in it, and changes nothing else.", []key{
			{"pool.existing.device", "empty, the name or the path below /dev/mapper of a mapped device, or VG/LV",
				"The thin pool, for example \"/dev/mapper/thinpool\", or, of LVM's, \"vg0/pool\". It must zero its blocks, and have no volume with an id of 8388608 or more."},
		}},
		{"filesystem", "The file system on the snapshots. A snapshot has the type that its parent has: a change is for snapshots without a parent.", []key{
			{"filesystem.type", anyOf(Ext4, XFS), "The type of the file system. Its mkfs program must be installed."},
			{"filesystem.base_size", fmt.Sprintf("a multiple of %v, at least %v for %s and %v for %s", diskBlock, minExt4Size, Ext4, minXFSSize, XFS),
				"The size of a snapshot, as far as no label asks for another. It takes no space by itself: only what is written does."},
			{"filesystem.mkfs_options", noEmpty, "Further arguments of the mkfs program, for example [\"-I\", \"512\"]."},
			{"filesystem.mount_options", noEmpty, "Further options of every mount, for example [\"noatime\"]."},
		}},
		{"spares", "Volumes that are made ahead for snapshots that nobody has asked for yet, and given up when they are not used for five minutes or when the pool gets full.", []key{
			{"spares.most", fmt.Sprintf("a number from 0 to %d", mostSpares),
				"How many there are at a time, over all parents, of which each has at most 8. Each is an active device, which takes some memory of the kernel, but no space of the pool. 0: every snapshot's volume is made when it is asked for."},
		}},
		{"remove", "What becomes of removed snapshots. They are deleted in the background.", []key{
			{"remove.discard", "true or false",
				"Discard a volume's blocks before it is deleted. Without it a pool's files never get smaller."},
		}},
	}
}

// socketRule is what both sockets' paths must be.
func socketRule() string { return fmt.Sprintf("an absolute path of at most %d bytes", maxSocketPath) }

const noEmpty = "a list of strings, none of them empty"

// anyOf is the rule of a key that takes one of a few strings.
func anyOf(values ...string) string {
	quoted := make([]string, 0, len(values))
	for _, v := range values {
		quoted = append(quoted, literal(v))
	}
	return strings.Join(quoted, " or ")
}

// allowed returns the rule of a key, which must be one of sections.
func allowed(name string) string {
	for _, s := range sections() {
		for _, k := range s.keys {
			if k.name == name {
				return k.allowed
			}
		}
	}
	panic("config: no description of key " + name)
}
