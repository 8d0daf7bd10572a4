package metadata

import (
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
)

const (
	// MaxDevice is the largest thin device id: the kernel keeps 24 bits of it.
	MaxDevice = 1<<24 - 1

	// MaxKeyLength is the longest key of a snapshot, in bytes: what bbolt takes, less the prefix
	// that indexes it.
	MaxKeyLength = 32768 - 8

	// FirstInForeign is the lowest device id that is leased in a foreign pool: the lower ids belong to
	// the pool's owner.
	FirstInForeign = 1 << 23
)

// The modes of a pool say where its space comes from.
const (
	// ModeLoop is a pool on two files.
	ModeLoop = "loop"
	// ModeDirectLVM is a pool that LVM created for thinsnap on a disk of its own.
	ModeDirectLVM = "direct-lvm"
	// ModeExisting is a foreign pool.
	ModeExisting = "existing"
)

// A Snapshot is the record of a key.
type Snapshot struct {
	Key    string // any bytes, 1 to MaxKeyLength of them
	Parent string // key of a committed snapshot, or empty
	Kind   snapshots.Kind
	Labels map[string]string // nil when there are none

	Created, Updated time.Time // UTC

	// VolumeID is the id of the snapshot's volume. A View owns none: it is that of its parent, or
	// of a base volume if the View has no parent.
	VolumeID   uint32
	Size       uint64 // virtual size, in bytes
	Filesystem string // "ext4", "xfs"

	// Base is the id of the base volume that is the origin of a snapshot without a parent. It is 0 in
	// records of version 1. The base volume may have been deleted since.
	Base uint32

	// Usage is that of the volume at its Commit. Only committed snapshots have it; others are measured.
	Usage Usage

	// Client is the number of the client that created or committed it (see ClientRecord), or 0 if
	// unknown. Create and Commit set it.
	Client uint64
}

// Usage is space taken on a volume.
type Usage struct {
	// Bytes are those that the volume maps, and Inodes those of its file system, its parents' part of
	// both included.
	Bytes, Inodes int64
	// Own is the part of Bytes that its parent does not map to the same blocks of the pool: all without
	// a parent. It is 0, and Exact false, in records of versions 1 and 2.
	Own   int64
	Exact bool
}

// A PoolRecord identifies the pool that the store belongs to.
type PoolRecord struct {
	ID        string // uuid
	Mode      string // ModeLoop, ModeDirectLVM, ModeExisting
	Name      string // of the mapped device, or of LVM's volume group; the names of the volumes' devices begin with it
	BlockSize uint64 // bytes

	// TransactionID is the number that is stamped, or about to be stamped, in the pool. Lease, Commit
	// and what claims an id of a Written lease add one to it, unless the pool is Foreign.
	TransactionID uint64

	Created  time.Time    // UTC
	Complete bool         // set once the pool has been made completely
	Loop     LoopFiles    // of a loop pool
	LVM      LVMVolume    // of a direct-lvm pool
	Existing ExistingPool // in ModeExisting
}

// Foreign reports whether the pool was not created by thinsnap, which then sets no transaction id in
// it, and changes only its own volumes.
func (p PoolRecord) Foreign() bool { return Foreign(p.Mode) }

// Foreign reports whether the pools of a mode are foreign.
func Foreign(mode string) bool {
	return slices.ContainsFunc((&PoolRecord{}).modes(), func(m modeRecord) bool { return m.mode == mode && m.foreign })
}

// Identified reports whether the record alone proves that a pool is the recorded one. A foreign
// pool whose device has no UUID is proved by a Witness in it.
func (p PoolRecord) Identified() bool {
	return !slices.ContainsFunc(p.modes(), func(m modeRecord) bool { return m.mode == p.Mode && !m.part.identified() })
}

// modes lists the modes with their parts of the record, in the order in which these are stored. A new
// mode goes to the end.
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

// LoopFiles are the files behind a loop pool.
type LoopFiles struct {
	// Paths relative to the root, or absolute if they are not in it. Version 1 has absolute paths only.
	DataFile, MetadataFile string
	// SectorBytes is the logical block size of the loop devices on them; 0 is 512, as in records of
	// version 1.
	SectorBytes uint64
	// Allocated is true if the data file is allocated before the pool uses it. Pools in records of
	// version 1 use a sparse file.
	Allocated bool
}

// An LVMVolume is the disk of a direct-lvm pool, with its volume group and pool in LVM.
type LVMVolume struct {
	Disk                         string // path of the disk, when the pool was created
	PVUUID                       string // of the disk, chosen before it was made
	VGUUID, LVUUID               string // of the volume group and the pool in it; empty until they are made
	DataPercent, MetadataPercent uint64 // of the disk that each was given
}

// An ExistingPool identifies a pool in ModeExisting.
type ExistingPool struct {
	MappedDevice string // name of its mapped device, as it was configured
	UUID         string // of that device; it may have none
	// Adopted are volumes of adopted committed snapshots, at most MaxAdopted. In a pool with adopted
	// volumes, an owned id below FirstInForeign is ours; the others below it are not.
	Adopted []AdoptedVolume
}

// MaxAdopted is how many adopted volumes a pool's record names.
const MaxAdopted = 16

// An AdoptedVolume is the volume of an adopted committed snapshot, whose file system shows that a
// pool is the recorded one.
type AdoptedVolume struct {
	VolumeID   uint32 // below FirstInForeign
	Filesystem string // "ext4", "xfs"
	UUID       string // of the file system
}

// A BaseRecord is a base volume: the origin of snapshots without a parent of one file system and
// size.
type BaseRecord struct {
	Filesystem  string // not empty
	Size        uint64 // virtual size, in bytes
	VolumeID    uint32 // owned by the base volume
	UUID        string // of the file system
	MkfsOptions []string
	Created     time.Time // UTC
}

// A LeaseRecord is a range of device ids that were leased together, both ends included.
type LeaseRecord struct {
	First, Last uint32
	// Written is true if thinsnap writes to the volumes before a record owns them. The transaction that
	// gives such an id an owner raises the pool's transaction id: a store without that record is older
	// than the pool.
	Written bool
}

// A TrashRecord is the volume of a removed snapshot, or an unneeded base volume, that is to be deleted.
type TrashRecord struct {
	VolumeID   uint32
	Size       uint64 // virtual size, in bytes
	Key        string // of the removed snapshot; another snapshot may have it now. Or the name of a base volume
	Filesystem string
	Since      time.Time // UTC
}

// An OwnerKind is the kind of an owner of a device id.
type OwnerKind uint8

// The kinds of owners.
const (
	OwnerUnknown  OwnerKind = iota // the record of the owner is damaged
	OwnerSnapshot                  // an active or committed snapshot
	OwnerBase                      // a base volume
	OwnerTrash                     // none: the volume is to be deleted
	OwnerKept                      // none: a leftover that is not deleted
)

// An Owner is the owner of a device id.
type Owner struct {
	Kind OwnerKind
	Key  string // of the snapshot; "FILESYSTEM/BYTES" of a base volume; empty for trash
}

// KindCounts are numbers of snapshots.
type KindCounts struct {
	Views, Active, Committed int
}

// Total is the number of snapshots of all kinds.
func (c KindCounts) Total() int { return c.Views + c.Active + c.Committed }
