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
			{"version", fmt.Sprint(Version), "The version of this file's format."},
			{"root", "an absolute path other than /",
				"The directory of thinsnap's data: the store and, in mode \"loop\", the two files of the pool. It is created if " +
					"it is missing. Only one daemon can use it at a time."},
			{"address", socketRule(),
				"The unix socket for containerd. It is created with mode 0600. If systemd has thinsnap.socket, that must have " +
					"the same path (ListenStream=). A second containerd needs an entry of [[clients]]."},
			{"admin_address", socketRule() + ", other than address",
				"The unix socket for the commands info, ls, tree, inspect, diff, check, fork, leftovers, top, page, client, " +
					"pool status, pool extend and pool trim, and for metrics and profiles. It is created with mode 0600."},
			{"metrics_address", "empty or HOST:PORT",
				"A TCP address that serves Prometheus metrics under /metrics without authentication, for example " +
					"\"127.0.0.1:9777\". Metrics contain no snapshot keys, and nothing else is served there. Anyone who can " +
					"reach the address can read them. Empty: metrics are on the admin socket only."},
		}},
		{"log", "The daemon's log on standard error.", []key{
			{"log.level", anyOf("trace", "debug", "info", "warn", "error"), "The lowest level that is logged."},
			{"log.format", anyOf("text", "json"), "Lines of key=value pairs, or one JSON object per line."},
		}},
		{"pool", "The thin pool. Its name, mode and block size are fixed when it is created.", []key{
			{"pool.name", fmt.Sprintf("1 to %d letters, digits and the characters - _ . +, beginning with a letter or a digit",
				maxPoolName),
				"The name of the pool's mapped device or, in mode \"direct-lvm\", of its volume group. In mode \"existing\" the " +
					"pool keeps its own name. It is the prefix of the names of all volumes. Two daemons on one machine need " +
					"different names."},
			{"pool.mode", anyOf(Modes()...),
				"Where the pool's space comes from. \"loop\": two files below root, attached as loop devices. " +
					"\"direct-lvm\": a whole disk, on which LVM creates the pool. \"existing\": a foreign pool, which thinsnap uses " +
					"but does not manage. If the key is missing, the mode is \"direct-lvm\" if pool.direct_lvm.device is set, " +
					"\"existing\" if pool.existing.device is set, and \"loop\" otherwise."},
			{"pool.block_size", fmt.Sprintf("a multiple of %v, at most %v", minBlockSize, maxBlockSize),
				"The unit in which the pool allocates space and shares it between snapshots. Small blocks copy less on the first " +
					"write to a shared block; large blocks need less metadata. Ignored in mode \"existing\"."},
			{"pool.min_free_space", "0% to 99%",
				"New snapshots are refused while less than this share of the pool's data or metadata space is available, to keep " +
					"space for running containers. Available is the free space of the pool, or that of the disk below its files if " +
					"it is less. 0%: snapshots are refused only when the pool is full."},
			{"pool.autoextend_threshold", "1% to 100%",
				"The pool is extended online when this share of its data or metadata space is used. 100%: never. In mode " +
					"\"existing\" thinsnap only warns: the pool's owner extends it."},
			{"pool.autoextend_percent", "1% to 100%",
				"The size of each extension, as a share of the present size of the data or the metadata."},
			{"pool.spares_max", fmt.Sprintf("a number from 0 to %d", maxSpares),
				"The maximum number of spare volumes for all parents together; each parent has at most 8. Spares are created " +
					"ahead for future snapshots, and deleted when they are not used for five minutes, or when the pool gets full. A " +
					"spare is an active device: it takes some kernel memory, but no pool space. 0: no spares."},
			{"pool.discard_on_remove", "true or false",
				"Discard the blocks of a removed snapshot's volume before it is deleted, which is done in the background. " +
					"Without discards a pool's files never shrink."},
		}},
		{"pool.loop", "The files of a pool in mode \"loop\".", []key{
			{"pool.loop.data_size", fmt.Sprintf("at least %v", minDataSize),
				"The size up to which the data file grows by itself. It can be raised later. The file begins with 2GiB, " +
					"or less if the disk has less room, and grows by at least 1GiB at pool.autoextend_threshold while the disk " +
					"keeps a reserve free (5% of it, at least 1GiB; 10% of a disk below 10GiB). Each part is allocated before the " +
					"pool uses it, so other programs cannot take it by filling the disk. If pool.autoextend_threshold is 100%, the " +
					"file is created with this size, as far as the disk has room for it."},
			{"pool.loop.metadata_size", fmt.Sprintf("a multiple of %v, from %v to %v", diskBlock, minMetadataSize,
				maxMetadataSize),
				"The size with which the metadata file is created. It is allocated, and grows at pool.autoextend_threshold. The " +
					"kernel needs about 64 bytes for each block of each volume."},
		}},
		{"pool.direct_lvm", "The disk of a pool in mode \"direct-lvm\". LVM creates the volume group NAME and the pool " +
			"NAME/pool on it, where NAME is pool.name.", []key{
			{"pool.direct_lvm.device", "empty or the absolute path of a block device",
				"The disk, at least 1GiB. It must be blank: no file system, no partition table, no LVM physical volume. A name " +
					"below /dev/disk/by-id is stable across reboots; that matters only until the pool is created, because LVM then " +
					"finds the disk by its own label."},
			{"pool.direct_lvm.thinp_percent", "1% to 98%",
				"The share of the disk for the pool's data. The rest is for extensions."},
			{"pool.direct_lvm.thinp_metapercent", "1% to 49%, and at most half of what thinp_percent leaves",
				"The share of the disk for the pool's metadata, at most 15GiB. The same amount must stay free: " +
					"LVM's first extension of the metadata creates a spare volume of that size for repairs."},
			{"pool.direct_lvm.force", "true or false",
				"Overwrite the contents of the disk when the pool is created. A disk that is in use or in a volume group is " +
					"refused in any case."},
		}},
		{"pool.existing", "The pool in mode \"existing\". thinsnap creates and deletes its own volumes in it, and changes " +
			"nothing else.", []key{
			{"pool.existing.device", "empty, the name or the path below /dev/mapper of a mapped device, or VG/LV",
				"The thin pool, for example \"/dev/mapper/thinpool\" or, for LVM, \"vg0/pool\". It must zero new blocks, and " +
					"must not have a volume with an id of 8388608 or more."},
		}},
		{"filesystem", "The file system of the snapshots. A change of type or mkfs_options applies to new snapshots " +
			"without a parent, and so to images that are pulled later: a snapshot's file system is a copy of its " +
			"parent's.", []key{
			{"filesystem.type", anyOf(Ext4, XFS), "The type of the file system. Its mkfs program must be installed."},
			{"filesystem.base_size", fmt.Sprintf("a multiple of %v, at least %v for %s and %v for %s", diskBlock, minExt4Size,
				Ext4, minXFSSize, XFS),
				"The size of a snapshot, unless its parent is larger or a label asks for another. Only written blocks take " +
					"space. If it is raised, new containers get the new size, also those of images that were pulled before. Layers " +
					"that are unpacked onto a smaller layer keep its size."},
			{"filesystem.max_size", fmt.Sprintf("0B or a multiple of %v, at least filesystem.base_size", diskBlock),
				"The largest size that a label can set: a larger one gets this size, and a warning is logged. The annotations " +
					"of a pod are such labels, too. A snapshot is never smaller than its parent. 0B: filesystem.base_size."},
			{"filesystem.mkfs_options", noEmpty,
				"Additional arguments for the mkfs program, for example [\"-I\", \"512\"]. An ext4 has an inode for " +
					"each 4KiB, unless -i, -N or -T is among them: [\"-i\", \"16384\"] is mke2fs's own default, and leaves 5% " +
					"more of the file system's size for data. An xfs creates inodes as they are needed."},
			{"filesystem.mount_options", noEmpty,
				"Additional options for every mount, for example [\"noatime\"]. For SELinux: [\"context=...\"] " +
					"(docs/kubernetes.md)."},
		}},
		{"diff", "How snapshots are compared if containerd has thinsnap as a differ (docs/commit.md).", []key{
			{"diff.containerd", "empty or " + socketRule(),
				"The socket of containerd, in whose content store the layers are written. Empty: the one of the containerd that " +
					"asks, which is found in /proc. Set it if thinsnap runs in a PID name space of its own."},
			{"diff.verify", "true or false",
				"Compare each layer with that of containerd's walking differ, before it is written, and leave it to that if they " +
					"are not the same. It takes longer than without thinsnap's differ, and is for tests."},
		}},
		{"clients", "Further clients that use the pool beside that of address, such as the containerd of k3s. Each has a " +
			"socket and snapshots of its own: it can neither see nor remove those of another. They share the pool, its limits " +
			"and its spares, but no layers: each client pulls its images. The snapshots of a client whose entry is removed " +
			"are kept, and it finds them when the entry is there again; \"thinsnap client remove\" removes them.", []key{
			{"clients.name", fmt.Sprintf("1 to %d lower-case letters, digits and hyphens, with no hyphen at the ends, other "+
				"than %q, and different for each client", metadata.MaxKeySpace, DefaultClient),
				"The name of the client. It is stored with each of its snapshots: with another name it is another client."},
			{"clients.address", socketRule() + ", other than those of the other clients and admin_address",
				"The unix socket for the client, as address. It is systemd's if a socket unit of thinsnap.service has the " +
					"client's name (FileDescriptorName=)."},
		}},
	}
}

// example returns the value of a key in an example of a list of tables, which has no entry by default.
func example(key string) (value any, is bool) {
	value, is = map[string]any{"clients.name": "k3s", "clients.address": "/run/thinsnap/k3s.sock"}[key]
	return value, is
}

// isList reports whether a section is a list of tables.
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
