package config

import (
	"fmt"
	"strings"

	"github.com/thinsnap/thinsnap/metadata"
)

// section is a table of the file, with its keys in the order of the printed file.
type section struct {
	name string // "" for the keys above the first table
	doc  string
	keys []key
}

// key documents a key. Its default comes from Default.
type key struct {
	name    string // dotted, as in error messages
	allowed string // completes "must be"; also the text of the error for an invalid value
	doc     string // whole sentences
}

// sections describes the file. The printed default file, the reference, the manual page and the
// errors of Validate come from it. It has an entry for every field of Config.
func sections() []section {
	return []section{
		{keys: []key{
			{"version", fmt.Sprint(Version), "The version of the file's format."},
			{"root", "an absolute path other than /",
				"The directory of the store and, in mode \"loop\", of the pool's two files. It is created if missing. Only " +
					"one daemon at a time can use it."},
			{"address", socketRule(),
				"The unix socket for containerd, created with mode 0600. If thinsnap.socket is used, its ListenStream= must be " +
					"the same path. A second containerd needs an entry of [[clients]]."},
			{"admin_address", socketRule() + ", other than address",
				"The unix socket for thinsnap's commands, metrics and profiles, created with mode 0600."},
			{"metrics_address", "empty or HOST:PORT",
				"A TCP address that serves Prometheus metrics under /metrics, such as \"127.0.0.1:9777\". It has no " +
					"authentication; metrics contain no snapshot keys. Empty: metrics are on the admin socket only."},
		}},
		{"log", "The daemon's log on standard error.", []key{
			{"log.level", anyOf("trace", "debug", "info", "warn", "error"), "The lowest logged level."},
			{"log.format", anyOf("text", "json"), "Lines of key=value pairs, or of JSON objects."},
		}},
		{"pool", "The thin pool. Its name, mode and block size are fixed when it is created.", []key{
			{"pool.name", fmt.Sprintf("1 to %d letters, digits and the characters - _ . +, beginning with a letter or a digit",
				maxPoolName),
				"The name of the pool's mapped device or, in mode \"direct-lvm\", of its volume group; and the prefix of the " +
					"names of the volumes' mapped devices. In mode \"existing\" the pool keeps its own name. " +
					"Two daemons on one machine need different names."},
			{"pool.mode", anyOf(Modes()...),
				"\"loop\": two files below root, attached as loop devices. \"direct-lvm\": a whole disk, on which LVM creates " +
					"the pool. \"existing\": a foreign pool, which thinsnap uses but does not manage. If the key is missing, the " +
					"mode is \"direct-lvm\" if pool.direct_lvm.device is set, \"existing\" if pool.existing.device is set, else " +
					"\"loop\"."},
			{"pool.block_size", fmt.Sprintf("a multiple of %v, at most %v", minBlockSize, maxBlockSize),
				"The unit in which the pool allocates space and shares it between snapshots. Small blocks copy less on the first " +
					"write to a shared block; large blocks need less metadata. Ignored in mode \"existing\"."},
			{"pool.min_free_space", "0% to 99%",
				"New snapshots are refused while less than this share of the data or metadata space is free, to keep space for " +
					"running containers. Free space in the pool's files counts only as far as their disk has room for it. 0%: " +
					"refused only when the pool is full."},
			{"pool.autoextend_threshold", "1% to 100%",
				"The used share of the data or metadata space at which the pool is extended online. 100%: never. In mode " +
					"\"existing\" thinsnap only warns: extend the pool with the program that made it."},
			{"pool.autoextend_percent", "1% to 100%",
				"The size of an extension, as a share of the present size of the data or metadata."},
			{"pool.spares_max", fmt.Sprintf("a number from 0 to %d", maxSpares),
				"The maximum number of spares: volumes created ahead for future snapshots, at most 8 for each parent. A spare is " +
					"deleted after five minutes without use, or when pool.min_free_space refuses snapshots. It takes kernel " +
					"memory, but no pool space. 0: no spares."},
			{"pool.discard_on_remove", "true or false",
				"Discard the blocks of a removed snapshot in the background, before its volume is deleted. Without it, " +
					"a removal frees space in the pool, but not on the disk below it."},
		}},
		{"pool.loop", "The files of a pool in mode \"loop\".", []key{
			{"pool.loop.data_size", fmt.Sprintf("at least %v", minDataSize),
				"The size up to which the data file grows by itself. It can be raised later. The file begins with 2GiB, or less " +
					"on a small disk. At pool.autoextend_threshold it grows by at least 1GiB, if the disk keeps a reserve free " +
					"(5% of it, at least 1GiB; 10% of a disk below 10GiB). Space is allocated before its use, so other programs " +
					"cannot take it. If pool.autoextend_threshold is 100%, the file is created with this size, or less on a small " +
					"disk."},
			{"pool.loop.metadata_size", fmt.Sprintf("a multiple of %v, from %v to %v", diskBlock, minMetadataSize,
				maxMetadataSize),
				"The initial size of the metadata file. It is allocated, and grows at pool.autoextend_threshold. The kernel " +
					"needs about 64 bytes for each written block of each volume."},
		}},
		{"pool.direct_lvm", "The disk of a pool in mode \"direct-lvm\". LVM creates the volume group NAME and the pool " +
			"NAME/pool on it, where NAME is pool.name.", []key{
			{"pool.direct_lvm.device", "empty or the absolute path of a block device",
				"The disk, at least 1GiB and blank: no file system, partition table or LVM physical volume. Paths below " +
					"/dev/disk/by-id are stable across reboots. The value must not change after the pool is created, although LVM " +
					"then finds the disk by its label."},
			{"pool.direct_lvm.thinp_percent", "1% to 98%",
				"The share of the disk for the pool's data. The rest is for metadata and extensions."},
			{"pool.direct_lvm.thinp_metapercent", "1% to 49%, and at most half of the rest after thinp_percent",
				"The share of the disk for the pool's metadata, at most 15GiB. The same amount must stay free: LVM's first " +
					"extension of the metadata creates a volume of that size for repairs."},
			{"pool.direct_lvm.force", "true or false",
				"Overwrite the contents of the disk when the pool is created. A disk in use or in a volume group is always " +
					"refused."},
		}},
		{"pool.existing", "The pool in mode \"existing\". thinsnap creates and deletes its own volumes in it, and changes " +
			"nothing else.", []key{
			{"pool.existing.device", "empty, a mapped device's name or path below /dev/mapper, or VG/LV",
				"The thin pool, such as \"/dev/mapper/thinpool\" or, for LVM, \"vg0/pool\". It must zero new blocks, and have no " +
					"thin device with an id of 8388608 or more."},
		}},
		{"filesystem", "The file system of the snapshots. A change of type or mkfs_options applies to images that are " +
			"pulled later: only a snapshot without a parent gets a new file system.", []key{
			{"filesystem.type", anyOf(Ext4, XFS), "The type's mkfs program must be installed."},
			{"filesystem.base_size", fmt.Sprintf("a multiple of %v, at least %v for %s and %v for %s", diskBlock, minExt4Size,
				Ext4, minXFSSize, XFS),
				"The size of a snapshot, unless its parent is larger or a label sets another. Only written blocks take space. A " +
					"raised size applies to all new containers; layers that are unpacked onto a smaller layer keep its size."},
			{"filesystem.max_size", fmt.Sprintf("0B or a multiple of %v, at least filesystem.base_size", diskBlock),
				"The largest size that a label can set. A larger size is reduced to it, and a warning is logged. A snapshot " +
					"is never smaller than its parent. 0B: filesystem.base_size."},
			{"filesystem.mkfs_options", noEmpty,
				"Additional arguments for mkfs, such as [\"-I\", \"512\"]. An ext4 has an inode for each 4KiB, unless -i, -N or " +
					"-T is among them: [\"-i\", \"16384\"], mke2fs's default, leaves 5% more for data. An xfs creates inodes on " +
					"demand."},
			{"filesystem.mount_options", noEmpty,
				"Additional options for every mount, such as [\"noatime\"]; for SELinux [\"context=...\"] (docs/kubernetes.md)."},
		}},
		{"diff", "The comparison of snapshots, if containerd has thinsnap as a differ (docs/commit.md).", []key{
			{"diff.containerd", "empty or " + socketRule(),
				"The socket of the containerd whose content store gets the layers. Empty: the caller's, found in /proc. Set it " +
					"if thinsnap runs in its own PID namespace."},
			{"diff.verify", "true or false",
				"For tests: compare each layer with that of containerd's walking differ before it is written. If they " +
					"are not the same, the walking differ writes the layer. This takes longer than the walking differ alone."},
		}},
		{"clients", "Further clients of the pool, such as the containerd of k3s. Each has its own socket and snapshots, " +
			"and can neither see nor remove those of another. They share the pool, its limits and its spares, but no layers: " +
			"each pulls its images. If an entry is removed, its snapshots are kept until the entry returns, or until " +
			"\"thinsnap client remove\".", []key{
			{"clients.name", fmt.Sprintf("1 to %d lower-case letters, digits and hyphens, with no hyphen at the ends, other "+
				"than %q, and different for each client", metadata.MaxKeySpace, DefaultClient),
				"The name is stored with each snapshot: another name is another client."},
			{"clients.address", socketRule() + ", other than those of the other clients and admin_address",
				"The client's unix socket, like address. systemd holds it if a socket unit of thinsnap.service has the client's " +
					"name (FileDescriptorName=)."},
		}},
	}
}

// example returns the value of a key in an example of a list of tables, which has no entry by default.
func example(key string) (value any, is bool) {
	value, is = map[string]any{"clients.name": "k3s", "clients.address": "/run/thinsnap/k3s.sock"}[key]
	return value, is
}

func (s section) isList() bool {
	_, is := example(s.keys[0].name)
	return is
}

// header begins the section's table.
func (s section) header() string {
	if s.isList() {
		return "[[" + s.name + "]]"
	}
	return "[" + s.name + "]"
}

// socketRule is the rule for the paths of both sockets.
func socketRule() string { return fmt.Sprintf("an absolute path of at most %d bytes", maxSocketPath) }

const noEmpty = "a list of non-empty strings"

// anyOf returns the rule of a key with a fixed set of values.
func anyOf(values ...string) string {
	quoted := make([]string, 0, len(values))
	for _, v := range values {
		quoted = append(quoted, literal(v))
	}
	return strings.Join(quoted, " or ")
}

// allowed returns the rule of a key. The key must be in sections.
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
