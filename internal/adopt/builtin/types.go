package builtin

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
)

// FilesystemLabel is the label of a snapshot with the type of its file system: ext4, xfs or ext2
// (plugins/snapshots/devmapper/snapshotter.go: devmapperSnapshotFsType). It came with containerd
// 1.6. A client can change or remove it, as any label.
const FilesystemLabel = "containerd.io/snapshot/devmapper/fstype"

// maxDeviceID is the largest number that the format allows (device_info.go). The snapshotter hands
// out smaller ones only.
const maxDeviceID = 0xffffff

// Databases are the contents of both databases.
type Databases struct {
	// Pool is the name of the pool, without /dev/mapper.
	Pool string

	Snapshots []Snapshot // sorted by key; no two have the same
	Devices   []Device   // sorted by name; no two have the same

	// IDs are the states of all device ids that were ever handed out.
	IDs map[uint32]IDState

	LastID     uint64 // the last id of a snapshot that was handed out; 0 if none was
	LastDevice uint64 // the last device id that was new when it was handed out; 0 if none was

	// Problems are sorted by subject.
	Problems []Problem
}

// Device returns the device of a snapshot, which is found by its name only.
func (d *Databases) Device(s Snapshot) (Device, bool) {
	i, found := slices.BinarySearchFunc(d.Devices, deviceName(d.Pool, s.ID), func(dev Device, name string) int {
		return strings.Compare(dev.Name, name)
	})
	if !found {
		return Device{}, false
	}
	return d.Devices[i], true
}

// deviceName is the name of a snapshot's device.
func deviceName(pool string, id uint64) string { return fmt.Sprintf("%s-snap-%d", pool, id) }

// A Snapshot is a record of metadata.db.
type Snapshot struct {
	Key    string         // never empty
	ID     uint64         // at least 1
	Kind   snapshots.Kind // KindView, KindActive or KindCommitted
	Parent string         // a key; empty without a parent

	// Bytes are those that the volume had mapped in the pool when the snapshot was committed: with
	// those of its ancestors, a multiple of 512, at least 0. It is 0 for other snapshots, whose
	// usage is asked of the kernel (snapshotter.go: Commit, Usage; pool_device.go: GetUsage).
	Bytes  int64
	Inodes int64 // at least 0; the snapshotter stores 0

	Created time.Time // UTC
	Updated time.Time // UTC

	Labels map[string]string // nil without labels
}

// Filesystem returns the type of the snapshot's file system: what FilesystemLabel says, or ext4
// without it, as for children of such a snapshot (snapshotter.go: createSnapshot).
func (s Snapshot) Filesystem() string {
	if fs := s.Labels[FilesystemLabel]; fs != "" {
		return fs
	}
	return "ext4"
}

// A Device is a record of the pool's database (device_info.go: DeviceInfo).
type Device struct {
	Name string // never empty
	ID   uint32 // the volume's in the pool; 1 to 16,777,215

	// Bytes is base_image_size when the device was made, for children too (snapshotter.go:
	// createSnapshot): it may be less than the parent's. It need not be a multiple of 512: the
	// mapped device has as many whole sectors (dmsetup/dmsetup.go: makeThinMapping).
	Bytes uint64

	// Parent is the name of the device whose volume was copied; empty for a new volume.
	Parent string

	State State
	Error string // of the operation that State began and that failed; empty if none did
}

// An IDState is the state of a device id.
type IDState uint8

// The states of device ids (metadata.go: deviceIDState).
const (
	Free   IDState = iota // its volume was deleted, or never made; handed out next
	Taken                 // of a device
	Faulty                // of a device that became faulty; never handed out, even if the device gets another
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
	// Subject is what it is about: `snapshot "k8s.io/12/sha256:..."`, `device "pool-snap-7"`,
	// "device id 12", "index entry 9/10" (ids of a parent and its child in v1/parents).
	Subject string
	Key     string // of the snapshot that it concerns; empty if it concerns none
	Text    string // what is wrong
}

func (p Problem) String() string { return p.Subject + ": " + p.Text }
