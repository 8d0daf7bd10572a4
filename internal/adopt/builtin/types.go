package builtin

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
)

// FilesystemLabel is the label of a snapshot with the type of its file system: ext4, xfs or ext2
// (plugins/snapshots/devmapper/snapshotter.go: devmapperSnapshotFsType). containerd sets it since
// 1.6. A client can change or remove it, like any label.
const FilesystemLabel = "containerd.io/snapshot/devmapper/fstype"

// maxDeviceID is the largest number that the format allows (device_info.go). The snapshotter uses
// smaller ones only.
const maxDeviceID = 0xffffff

// Databases has the contents of both databases.
type Databases struct {
	// Pool is the name of the pool, without /dev/mapper.
	Pool string

	Snapshots []Snapshot // sorted by unique key
	Devices   []Device   // sorted by unique name

	// IDs has the states of all device ids that were ever allocated.
	IDs map[uint32]IDState

	LastID     uint64 // the last allocated snapshot id, or 0
	LastDevice uint64 // the last device id that was new when it was allocated, or 0

	// Problems is sorted by subject.
	Problems []Problem
}

// Device returns the device of a snapshot, which it finds by the name.
func (d *Databases) Device(s Snapshot) (Device, bool) {
	i, found := slices.BinarySearchFunc(d.Devices, deviceName(d.Pool, s.ID), func(dev Device, name string) int {
		return strings.Compare(dev.Name, name)
	})
	if !found {
		return Device{}, false
	}
	return d.Devices[i], true
}

func deviceName(pool string, id uint64) string { return fmt.Sprintf("%s-snap-%d", pool, id) }

// A Snapshot is a record of metadata.db.
type Snapshot struct {
	Key    string         // never empty
	ID     uint64         // at least 1
	Kind   snapshots.Kind // KindView, KindActive or KindCommitted
	Parent string         // a key; "" without a parent

	// Bytes is the space that a committed snapshot's volume, with its ancestors' blocks, mapped in
	// the pool at the commit, a multiple of 512. For other kinds it is 0, and containerd asks the
	// kernel for their usage (snapshotter.go: Commit, Usage; pool_device.go: GetUsage).
	Bytes  int64
	Inodes int64 // at least 0; the snapshotter stores 0

	Created time.Time // UTC
	Updated time.Time // UTC

	Labels map[string]string // nil without labels
}

// Filesystem returns the type of the snapshot's file system from FilesystemLabel. Without the label
// it is ext4, also for children of such a snapshot (snapshotter.go: createSnapshot).
func (s Snapshot) Filesystem() string {
	if fs := s.Labels[FilesystemLabel]; fs != "" {
		return fs
	}
	return "ext4"
}

// A Device is a record of the pool's database (device_info.go: DeviceInfo).
type Device struct {
	Name string // never empty
	ID   uint32 // the volume's id in the pool, 1 to 16,777,215

	// Bytes is base_image_size when the device was created, also for children (snapshotter.go:
	// createSnapshot), so it may be less than the parent's. It need not be a multiple of 512: the
	// mapped device has only the whole sectors (dmsetup/dmsetup.go: makeThinMapping).
	Bytes uint64

	// Parent is the name of the device whose volume was copied, or "" for a new volume.
	Parent string

	State State
	Error string // the error of the failed operation in State, or ""
}

// An IDState is the state of a device id.
type IDState uint8

// The states of device ids (metadata.go: deviceIDState).
const (
	Free   IDState = iota // the volume was deleted or never created; used next
	Taken                 // used by a device
	Faulty                // of a device that became faulty; never used again, even if the device gets another id
)

func (s IDState) String() string {
	switch s {
	case Free:
		return "free"
	case Taken:
		return "taken"
	case Faulty:
		return "faulty"
	default:
		return fmt.Sprintf("unknown %d", uint8(s))
	}
}

// A Problem is a contradiction within the databases.
type Problem struct {
	// Subject is such as `snapshot "k8s.io/12/sha256:..."`, `device "pool-snap-7"`, "device id 12"
	// or "index entry 9/10", with the ids of a parent and its child in v1/parents.
	Subject string
	Key     string // the key of the affected snapshot, or ""
	Text    string // the contradiction
}

func (p Problem) String() string { return p.Subject + ": " + p.Text }
