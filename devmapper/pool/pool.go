// Package pool manages one thin pool and the volumes in it. It knows nothing about snapshots:
// its caller decides what a volume is for.
//
// The pool is on loop devices (loop.go), on LVM's volumes (lvm.go), or foreign (existing.go). Each
// of these files has a backend: the operations that differ.
//
// Each mapped device that it makes has a UUID that begins with the pool's identifier. The UUID, not
// the name, marks a device as ours.
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
	// ErrNameTaken is returned when a foreign mapped device has the name of the pool or of a volume.
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

// Pool is a thin pool in the kernel. Its methods may be called concurrently; the caller puts calls
// about one volume in order.
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
	// data and metadata are the files below the pool's loop devices; without a path if there are none.
	data, metadata backingFile
	// reloaded says that the live table may be another than the backend's last.
	reloaded atomic.Bool
	// lastNumber is the result of the last number.
	lastNumber atomic.Pointer[string]
	usages     usages
	// disks is what the files took of their disks when that was last looked up.
	disks atomic.Pointer[disks]
	// loading is held for writing while thinsnap suspends the pool: the kernel activates no volume
	// then (drivers/md/dm-thin.c: thin_ctr).
	loading sync.RWMutex
}

// Reloaded notes that the pool has left the kernel and was loaded again, with another table.
func (p *Pool) Reloaded() { p.reloaded.Store(true) }

// backend has the operations that depend on who made the pool, and on which devices.
type backend interface {
	// deactivate removes the pool, which has no active volumes, from the kernel.
	deactivate(ctx context.Context, p *Pool) error
	// extend implements [Pool.Extend].
	extend(ctx context.Context, p *Pool, dataBytes, metadataBytes uint64) error
	// largest implements [Pool.Largest].
	largest(ctx context.Context, p *Pool) (data, metadata uint64, err error)
	// keepAllocated implements [Pool.KeepAllocated].
	keepAllocated(ctx context.Context, p *Pool) (watch bool, err error)
	// monitor implements [Pool.Monitor].
	monitor(ctx context.Context, on bool) error
	// setTransactionID implements [Pool.SetTransactionID].
	setTransactionID(p *Pool, from, to uint64) error
}

// newPool returns the pool whose mapped device is dev. Its blocks must have blockBytes bytes, any
// size for 0. A pool that does not zero new blocks is refused: they have other users' data.
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

// attach is newPool for a pool that may not zero new blocks, with its live table.
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

// Name returns the name of the pool's mapped device. LVM renames it when it makes its first volume
// in the pool.
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

// number returns the number of the pool's device as "MAJ:MIN". If the pool was deactivated and
// activated again, it has another number, and another pool may have the old one. It takes an ioctl
// only then: otherwise sysfs confirms the last number.
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

// explainGone returns ErrNotActive if a call about the pool failed because its device does not exist,
// or has no table yet, as while it is brought back.
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

// uuidAt returns the UUID of the mapped device with that number, which may be "", and whether there is such a device
// (Documentation/ABI/testing/sysfs-block-dm).
func uuidAt(number string) (uuid string, found bool) {
	uuid, err := devmapper.ReadAttribute(filepath.Join("/sys/dev/block", number, "dm/uuid"))
	return uuid, err == nil
}

// nameAt returns the name of the mapped device with that number, "" if there is none.
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

// SetTransactionID changes the pool's transaction id. It fails, and changes nothing, if the id is
// not from. For a foreign pool it is ErrNotOurs: LVM refuses a pool with an id that it did not set.
func (p *Pool) SetTransactionID(ctx context.Context, from, to uint64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return p.explainGone(p.backend.setTransactionID(p, from, to))
}

// Close deactivates all volumes of the pool, and then the pool itself, unless it is foreign. It
// returns devmapper.ErrBusy while a volume is open. The devices and files below the pool stay.
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
