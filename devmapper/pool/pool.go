// Package pool manages one thin pool and the volumes in it. It knows nothing about containerd's
// snapshots: its caller decides what a volume is for.
//
// The pool is on loop devices (loop.go), on LVM volumes (lvm.go), or foreign (existing.go). Each of
// these files implements backend for its kind of pool.
//
// The UUID of each mapped device that thinsnap creates begins with "THINSNAP-" and the pool's
// identifier. Only the UUID marks a device as ours, never the name.
package pool

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/thin"
)

// MetadataBlockBytes is the size of a block of pool metadata
// (Documentation/admin-guide/device-mapper/thin-provisioning.rst).
const MetadataBlockBytes = 4096

var (
	// ErrNameTaken is returned when a foreign mapped device has the name of the pool or of a volume,
	// or a foreign volume group has the name of the pool's.
	ErrNameTaken = errors.New("a foreign mapped device has that name")
	// ErrWrongPool is returned when the pool, or the device below it, is not the expected one.
	ErrWrongPool = errors.New("not the expected pool")
	// ErrWrongDevice is returned when the node of a volume leads to another device.
	ErrWrongDevice = errors.New("not the volume's device")
	// ErrNotActive is returned when the pool is not in the kernel, and thinsnap cannot activate it.
	ErrNotActive = errors.New("the pool is not active")
	// ErrMetadataTooSmall is returned when the metadata has no room to count the new data blocks.
	ErrMetadataTooSmall = errors.New("the pool's metadata is too small for that: extend it first")
)

// Pool is a thin pool in the kernel. Its methods may be called concurrently; the caller serializes
// calls for one volume.
type Pool struct {
	control    *devmapper.Control
	thin       *thin.Pool
	backend    backend
	id         string // part of the volumes' UUIDs
	name       string // prefix of the volumes' names
	uuid       string // of the pool's mapped device; a foreign pool may have none
	device     string // devmapper.ByUUID(uuid), or the name of a device without one
	deviceName string // when the pool was opened
	blockBytes uint64
	// data and metadata are the files below the pool's loop devices; their paths are empty if there
	// are none.
	data, metadata backingFile
	// reloaded is true if the live table may differ from the backend's last one.
	reloaded   atomic.Bool
	lastNumber atomic.Pointer[string]
	usages     usages
	disks      atomic.Pointer[disks]
	// loading is held for writing while thinsnap suspends the pool: the kernel refuses to activate
	// volumes then (drivers/md/dm-thin.c: thin_ctr).
	loading sync.RWMutex
}

// Reloaded records that the pool was removed from the kernel and loaded again with another table.
func (p *Pool) Reloaded() { p.reloaded.Store(true) }

// backend has the operations that differ between the kinds of pool. All but deactivate implement
// the methods of Pool with their names.
type backend interface {
	// deactivate removes a pool without active volumes from the kernel.
	deactivate(ctx context.Context, p *Pool) error
	extend(ctx context.Context, p *Pool, dataBytes, metadataBytes uint64) error
	largest(ctx context.Context, p *Pool) (data, metadata uint64, err error)
	keepAllocated(ctx context.Context, p *Pool) (watch bool, err error)
	monitor(ctx context.Context, on bool) error
	setTransactionID(p *Pool, from, to uint64) error
}

// newPool returns the pool whose mapped device is dev. Its block size must be blockBytes, unless
// that is 0. A pool that does not zero new blocks is refused: they would show deleted data of other
// volumes.
func newPool(
	control *devmapper.Control, dev devmapper.Device, id, name string, blockBytes uint64, b backend,
) (*Pool, error) {
	p, l, err := attach(control, dev, id, name, blockBytes, b)
	if err == nil && l.table.SkipBlockZeroing {
		err = fmt.Errorf("device %s does not zero new blocks, so they would show old data: %s: %w", dev.Name,
			zeroingRemedy(dev), ErrWrongPool)
	}
	if err != nil {
		return nil, err
	}
	return p, nil
}

// attach is newPool without the check for zeroing. It also returns the live table.
func attach(
	control *devmapper.Control, dev devmapper.Device, id, name string, blockBytes uint64, b backend,
) (*Pool, liveTable, error) {
	p := &Pool{
		control: control, backend: b, id: id, name: name, uuid: dev.UUID, device: dev.Name, deviceName: dev.Name,
		blockBytes: blockBytes,
	}
	p.thin = thin.NewPool(control, dev.Name)
	if dev.UUID != "" {
		p.device, p.thin = devmapper.ByUUID(dev.UUID), thin.NewPoolByUUID(control, dev.UUID, dev.Name)
	}
	number := dev.Number()
	p.lastNumber.Store(&number)
	l, err := p.live()
	if err != nil {
		return nil, liveTable{}, err
	}
	p.blockBytes = uint64(l.table.BlockSectors) * devmapper.SectorBytes
	return p, l, nil
}

func zeroingRemedy(dev devmapper.Device) string {
	if volume, ok := lvmVolume(dev.Name); ok && strings.HasPrefix(dev.UUID, lvmPrefix) {
		return "run `lvchange --zero y " + volume + "`"
	}
	return "load its table without skip_block_zeroing"
}

// Name returns the name of the pool's mapped device. LVM renames it when it creates its first
// volume in the pool.
func (p *Pool) Name() string {
	dev, err := p.control.Info(p.device)
	if err != nil {
		return p.deviceName
	}
	return dev.Name
}

// BlockBytes returns the size of the pool's blocks, in bytes.
func (p *Pool) BlockBytes() uint64 { return p.blockBytes }

// UUID returns the UUID of the pool's mapped device.
func (p *Pool) UUID() string { return p.uuid }

// number returns the pool's device number as "MAJOR:MINOR". A pool that was deactivated and
// activated again has another number, and the old one may belong to another pool. It takes an ioctl
// only if sysfs does not confirm the last number.
func (p *Pool) number() (string, error) {
	last := *p.lastNumber.Load()
	if uuid, found := uuidAt(last); found && uuid == p.uuid && (uuid != "" || nameAt(last) == p.device) {
		return last, nil
	}
	dev, err := p.control.Info(p.device)
	if err == nil && !dev.Live {
		err = fmt.Errorf("device %s has no table: %w", dev.Name, devmapper.ErrNotFound)
	}
	if err != nil {
		return "", p.explainGone(err)
	}
	number := dev.Number()
	p.lastNumber.Store(&number)
	return number, nil
}

// explainGone adds ErrNotActive to the error of a call about the pool if the pool's device does not
// exist or has no table yet.
func (p *Pool) explainGone(err error) error {
	gone := errors.Is(err, devmapper.ErrNotFound)
	if err != nil && !gone {
		dev, infoErr := p.control.Info(p.device)
		gone = errors.Is(infoErr, devmapper.ErrNotFound) || infoErr == nil && !dev.Live
	}
	if !gone {
		return err
	}
	return fmt.Errorf("pool %s: %w: %w", p.deviceName, err, ErrNotActive)
}

// uuidAt returns the UUID, which may be "", of the mapped device with the given number, and whether
// that device exists (Documentation/ABI/testing/sysfs-block-dm).
func uuidAt(number string) (uuid string, found bool) {
	uuid, err := devmapper.ReadAttribute(filepath.Join("/sys/dev/block", number, "dm/uuid"))
	return uuid, err == nil
}

// nameAt returns the name of the mapped device with the given number, or "" if it does not exist.
func nameAt(number string) string {
	name, err := devmapper.ReadAttribute(filepath.Join("/sys/dev/block", number, "dm/name"))
	if err != nil {
		return ""
	}
	return name
}

func (p *Pool) suspended() (bool, error) {
	dev, err := p.control.Info(p.device)
	return dev.Suspended, err
}

// SetTransactionID changes the pool's transaction id. It fails without a change if the current id
// is not from. It returns ErrNotOurs for a foreign pool: LVM refuses a pool with an id that it did
// not set.
func (p *Pool) SetTransactionID(ctx context.Context, from, to uint64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return p.explainGone(p.backend.setTransactionID(p, from, to))
}

// Close deactivates all volumes of the pool, and then the pool itself, unless it is foreign. It
// returns devmapper.ErrBusy while a volume is open. The devices and files below the pool remain.
func (p *Pool) Close(ctx context.Context) error {
	volumes, err := p.Active(ctx)
	if err != nil {
		return err
	}
	for _, v := range volumes {
		if err := p.Deactivate(ctx, v.ID); err != nil {
			return fmt.Errorf("deactivate volume %d of pool %s: %w", v.ID, p.name, err)
		}
	}
	if err := p.backend.deactivate(ctx, p); err != nil && !errors.Is(err, devmapper.ErrNotFound) {
		return fmt.Errorf("deactivate pool %s: %w", p.name, err)
	}
	return nil
}
