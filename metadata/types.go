package metadata

import (
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
)

const (
	// MaxDevice is the largest thin device id: the kernel has 24 bits for it.
	MaxDevice = 1<<24 - 1

	// MaxKeyLength is the maximum length of a snapshot's key in bytes: bbolt's limit, less room for
	// the prefix in the index of children.
	MaxKeyLength = 32768 - 8

	// FirstInForeign is the lowest device id that is leased in a foreign pool. Volumes with lower
	// ids are foreign, unless they were adopted.
	FirstInForeign = 1 << 23
)

// Modes of a pool.
const (
	// ModeLoop is a pool in two files.
	ModeLoop = "loop"
	// ModeDirectLVM is a pool that LVM created for thinsnap on a disk of its own.
	ModeDirectLVM = "direct-lvm"
	// ModeExisting is a foreign pool.
	ModeExisting = "existing"
)

// A Snapshot is a stored snapshot.
type Snapshot struct {
	Key    string // any bytes, 1 to MaxKeyLength of them
	Parent string // key of a committed snapshot, or empty
	Kind   snapshots.Kind
	Labels map[string]string // nil if there are none

	Created, Updated time.Time // UTC

	// VolumeID is the id of the snapshot's volume. A View owns no volume: it has the id of its
	// parent's, or of a base volume if it has no parent.
	VolumeID   uint32
	Size       uint64 // virtual size, in bytes
	Filesystem string // "ext4", "xfs"

	// Base is the id of the base volume that an active or committed snapshot without a parent was
	// created from. That volume may have been deleted since. It is 0 for other snapshots, those with
	// a file system of their own, adopted ones and records of version 1.
	Base uint32

	// Usage was measured at the Commit. It is zero for snapshots that are not committed: theirs is
	// measured when needed.
	Usage Usage

	// Client is the number of the client that last created, committed or took over the snapshot (see
	// ClientRecord), or 0 if unknown. Create, Commit and TakeOver set it.
	Client uint64
}

// Usage is the space that a volume takes.
type Usage struct {
	// Bytes counts the mapped bytes of the volume, and Inodes the inodes of its file system. Both
	// include those shared with the parents.
	Bytes, Inodes int64
	// Own is the usage: the part of Bytes that the parent's volume does not map to the same blocks
	// of the pool. Without a parent it is all of Bytes. Exact is true if Own was measured; otherwise
	// Own is 0, as in records of versions 1 and 2.
	Own   int64
	Exact bool
}

// A PoolRecord identifies the pool that the store belongs to.
type PoolRecord struct {
	ID        string // uuid
	Mode      string // ModeLoop, ModeDirectLVM, ModeExisting
	Name      string // of the mapped device, or of LVM's volume group; prefix of the names of the volumes' devices
	BlockSize uint64 // bytes

	// TransactionID is the number that is, or is about to be, stamped into the pool. Lease and Commit
	// add one to it, and so does a new owner of an id in a Written lease, unless the pool is Foreign.
	TransactionID uint64

	Created  time.Time    // UTC
	Complete bool         // the pool was made completely
	Loop     LoopFiles    // of a loop pool
	LVM      LVMPool      // of a direct-lvm pool
	Existing ExistingPool // of a pool in ModeExisting
}

// Foreign reports whether the pool is foreign: thinsnap then stamps no transaction id into it, and
// changes only its own volumes.
func (p PoolRecord) Foreign() bool { return Foreign(p.Mode) }

// Foreign reports whether the pools of a mode are foreign.
func Foreign(mode string) bool {
	return slices.ContainsFunc((&PoolRecord{}).modes(), func(m modeRecord) bool { return m.mode == mode && m.foreign })
}

// Identified reports whether the record alone proves that a pool is the recorded one. A foreign
// pool without a UUID is identified by a Witness in it.
func (p PoolRecord) Identified() bool {
	return !slices.ContainsFunc(p.modes(), func(m modeRecord) bool { return m.mode == p.Mode && !m.part.identified() })
}

// modes returns the modes with their parts of the record, in the order of storage. Append new
// modes.
func (p *PoolRecord) modes() []modeRecord {
	return []modeRecord{
		{mode: ModeLoop, part: &p.Loop},
		{mode: ModeDirectLVM, part: &p.LVM},
		{mode: ModeExisting, part: &p.Existing, foreign: true},
	}
}

type modeRecord struct {
	mode    string
	foreign bool
	part    interface {
		isZero() bool
		identified() bool
		encode(e *encoder)
		decode(d *decoder)
	}
}

// LoopFiles are the files of a loop pool.
type LoopFiles struct {
	// Paths are relative to the root, or absolute if outside of it. In records of version 1 all are
	// absolute.
	DataFile, MetadataFile string
	// SectorBytes is the logical block size of the loop devices on them; 0 means 512, as in records
	// of version 1.
	SectorBytes uint64
	// Allocated is true if space in the data file is allocated before the pool uses it. Pools in
	// records of version 1 use a sparse file.
	Allocated bool
}

// An LVMPool is the disk of a direct-lvm pool, with its volume group and pool in LVM.
type LVMPool struct {
	Disk                         string // path of the disk at the pool's creation
	PVUUID                       string // of the physical volume, chosen before pvcreate
	VGUUID, LVUUID               string // of the volume group and the pool in it; empty until they exist
	DataPercent, MetadataPercent uint64 // shares of the disk
}

// An ExistingPool identifies a pool in ModeExisting.
type ExistingPool struct {
	MappedDevice string // name of its mapped device, as configured
	UUID         string // of that device; may be empty
	// Adopted are the adopted volumes that identify the pool: at most MaxAdopted, though more may
	// have been adopted. In such a pool, a volume with an id below FirstInForeign is foreign unless it
	// has an owner.
	Adopted []AdoptedVolume
}

// MaxAdopted is the maximum length of ExistingPool.Adopted.
const MaxAdopted = 16

// An AdoptedVolume is the volume of an adopted committed snapshot. Its file system's UUID proves
// that a pool is the recorded one.
type AdoptedVolume struct {
	VolumeID   uint32 // below FirstInForeign
	Filesystem string // "ext4", "xfs"
	UUID       string // of the file system
}

// A BaseRecord is a base volume: the origin of snapshots without a parent, for one file system and
// size.
type BaseRecord struct {
	Filesystem  string // not empty
	Size        uint64 // virtual size, in bytes
	VolumeID    uint32 // owned by the base volume
	UUID        string // of the file system
	MkfsOptions []string
	Created     time.Time // UTC
}

// A LeaseRecord is a range of device ids that were leased together.
type LeaseRecord struct {
	First, Last uint32
	// Written is true if thinsnap writes to the volumes before a record owns them. The transaction
	// that sets the owner of such an id raises the pool's transaction id. A store without that
	// record, such as a restored backup, then has a lower one, which shows that it is older.
	Written bool
}

// A TrashRecord is a volume that is to be deleted: that of a removed snapshot, one that a Commit
// replaced, an unneeded base volume, or a discarded leftover.
type TrashRecord struct {
	VolumeID   uint32
	Size       uint64 // virtual size, in bytes
	Key        string // the removed snapshot's, perhaps also a new one's; "base volume FILESYSTEM/BYTES"; or empty
	Filesystem string
	Since      time.Time // UTC
}

// An OwnerKind is the kind of owner of a device id.
type OwnerKind uint8

// Kinds of owners.
const (
	OwnerUnknown  OwnerKind = iota // the entry in the index is damaged
	OwnerSnapshot                  // an active or committed snapshot
	OwnerBase                      // a base volume
	OwnerTrash                     // no snapshot: the volume is to be deleted
	OwnerKept                      // no snapshot: the volume is a kept leftover
)

// An Owner is the owner of a device id.
type Owner struct {
	Kind OwnerKind
	Key  string // of the snapshot; "FILESYSTEM/BYTES" of a base volume; otherwise empty
}

// KindCounts are numbers of snapshots.
type KindCounts struct {
	Views, Active, Committed int
}

// Total is the number of snapshots of all kinds.
func (c KindCounts) Total() int { return c.Views + c.Active + c.Committed }
