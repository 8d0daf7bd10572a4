// Package pool makes and keeps a thin pool and the volumes in it. It knows
// nothing of snapshots: which volume stands for what is its caller's business.
//
// Every mapped device that it makes carries a UUID that begins with the pool's
// identifier, and that, not the name, is what makes a device ours.
package pool

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/thin"
)

// SectorBytes is the unit of device-mapper tables.
const SectorBytes = 512

// activateTries and activatePause bound the wait for a pool that LVM has suspended for
// a moment, in which the kernel activates no volume.
const (
	activateTries = 50
	activatePause = 20 * time.Millisecond
)

// MetadataBlockBytes is the size of a block of pool metadata
// (Documentation/admin-guide/device-mapper/thin-provisioning.rst).
const MetadataBlockBytes = 4096

var (
	// ErrNameTaken is returned when a mapped device with the pool's name exists
	// that is not this pool.
	ErrNameTaken = errors.New("a mapped device of that name exists that is not ours")
	// ErrWrongPool is returned when what stands in the place of the pool is not
	// what was made there.
	ErrWrongPool = errors.New("not the pool that was made here")
	// ErrMetadataTooSmall is returned when the data is to become larger than the
	// metadata has room for.
	ErrMetadataTooSmall = errors.New("the pool's metadata is too small for that: extend it first")
)

// Pool is a thin pool that is loaded in the kernel. Its methods may be called
// concurrently; calls that concern one volume are the caller's to put in order.
type Pool struct {
	control    *devmapper.Control
	thin       *thin.Pool
	id         string
	name       string // what the names of the volumes' devices begin with
	device     string // name of the pool's own device, or devmapper.ByUUID
	uuid       string // of that
	number     string // "MAJ:MIN", as tables want it
	blockBytes uint64
	backing    Backing
	lvm        *LVMSpec // nil unless thinsnap had LVM make it
	existing   bool     // somebody else made it
	// lowWaterPercent is LoopSpec's.
	lowWaterPercent uint64

	// loading is held while thinsnap has the pool suspended: the kernel then activates no
	// volume (drivers/md/dm-thin.c: thin_ctr).
	loading sync.RWMutex
}

// Backing tells where a pool keeps its data.
type Backing struct {
	// DataFile and MetadataFile are the files below the pool's devices, if these are loop devices.
	DataFile, MetadataFile string
	// DataDevice and MetadataDevice are the block devices below the pool, as
	// "MAJ:MIN".
	DataDevice, MetadataDevice string
	// DataPath and MetadataPath are the same devices' nodes.
	DataPath, MetadataPath string
	// DataDisks and MetadataDisks are the nodes of the disks below those of a
	// pool that LVM or somebody else made.
	DataDisks, MetadataDisks []string
}

// Volume is a thin volume that is active.
type Volume struct {
	ID thin.ID
	// Path is the device's node under /dev/mapper.
	Path string
	// OpenCount is how many openers the device has, mounts included.
	OpenCount int
	ReadOnly  bool
	Suspended bool
	Device    devmapper.Device
}

// Name returns the name of the pool's mapped device.
func (p *Pool) Name() string {
	if !p.existing {
		return p.device
	}
	dev, err := p.control.Info(p.device)
	if err != nil {
		return p.device
	}
	return dev.Name
}

// UUID returns the UUID of the pool's mapped device.
func (p *Pool) UUID() string { return p.uuid }

// Backing returns where the pool keeps its data.
func (p *Pool) Backing() Backing { return p.backing }

// VolumeName returns the name of the mapped device of a volume.
func (p *Pool) VolumeName(id thin.ID) string {
	return p.name + "-snap-" + strconv.FormatUint(uint64(id), 10)
}

// VolumePath returns the node of the mapped device of a volume, which is there
// while the volume is active.
func (p *Pool) VolumePath(id thin.ID) string { return devmapper.NodePath(p.VolumeName(id)) }

// uuidStart begins the UUIDs of all devices that thinsnap makes, and the tags that it has LVM put on its own.
const uuidStart = "THINSNAP-"

func uuidPrefix(poolID string) string { return uuidStart + poolID + "-" }

func poolUUID(poolID string) string { return uuidPrefix(poolID) + "pool" }

func (p *Pool) volumeUUID(id thin.ID) string {
	return uuidPrefix(p.id) + strconv.FormatUint(uint64(id), 10)
}

// lowWaterBlocks is the low water mark of a pool of so many blocks.
func (p *Pool) lowWaterBlocks(total uint64) uint64 {
	if p.lowWaterPercent == 0 {
		return max(lowWaterBytes/p.blockBytes, 1)
	}
	return max(percentOf(total, p.lowWaterPercent), 1)
}

// CreateThin makes an empty volume. It returns thin.ErrExists for an id in use.
func (p *Pool) CreateThin(ctx context.Context, id thin.ID) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return p.thin.CreateThin(id)
}

// CreateSnap makes a volume with the content of origin. A writable origin that
// is active must have no writes under way: it is not in use, or suspended.
func (p *Pool) CreateSnap(ctx context.Context, id, origin thin.ID) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return p.thin.CreateSnap(id, origin)
}

// Delete deletes a volume that is not active. It returns thin.ErrNoDevice when
// there is none of that id.
func (p *Pool) Delete(ctx context.Context, id thin.ID) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return p.thin.Delete(id)
}

// SetTransactionID changes the pool's transaction id from one value to another.
// It fails, changing nothing, if the present value is not the expected one, and with
// ErrNotOurs in a pool that somebody else made: LVM refuses one with another than its own.
func (p *Pool) SetTransactionID(ctx context.Context, from, to uint64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if p.existing {
		return fmt.Errorf("set the transaction id of pool %s: %w", p.name, ErrNotOurs)
	}
	return p.thin.SetTransactionID(from, to)
}

// Activate makes the volume available as a block device of so many bytes, a
// multiple of 512. The volume must not be active. It returns thin.ErrNoDevice
// when the pool has no volume of that id, and ErrNameTaken when a device of
// somebody else's has its name.
func (p *Pool) Activate(ctx context.Context, id thin.ID, bytes uint64, readOnly bool) (Volume, error) {
	if err := ctx.Err(); err != nil {
		return Volume{}, err
	}
	number, err := p.numberNow()
	if err != nil {
		return Volume{}, err
	}
	target := thin.Target(number, id, bytes/SectorBytes)
	p.loading.RLock()
	defer p.loading.RUnlock()
	dev, err := p.control.Activate(p.VolumeName(id), p.volumeUUID(id), []devmapper.Target{target}, readOnly)
	// LVM suspends its pools as it likes.
	for tries := 0; (p.lvm != nil || p.existing) && errors.Is(err, unix.EINVAL) && tries < activateTries; tries++ {
		select {
		case <-time.After(activatePause):
		case <-ctx.Done():
			return Volume{}, errors.Join(ctx.Err(), err)
		}
		dev, err = p.control.Activate(p.VolumeName(id), p.volumeUUID(id), []devmapper.Target{target}, readOnly)
	}
	switch {
	case errors.Is(err, unix.ENODATA):
		return Volume{}, fmt.Errorf("%w: %w", err, thin.ErrNoDevice)
	case errors.Is(err, devmapper.ErrExists):
		return Volume{}, p.explainTaken(id, err)
	case err != nil:
		return Volume{}, err
	}
	return p.volume(id, dev), nil
}

// explainTaken makes ErrNameTaken of the error that a device with the volume's name exists, if that is not its own.
func (p *Pool) explainTaken(id thin.ID, err error) error {
	dev, infoErr := p.control.Info(p.VolumeName(id))
	if infoErr != nil || dev.UUID == p.volumeUUID(id) {
		return err
	}
	return fmt.Errorf("device %s has UUID %q (does another root have the same pool.name?): %w", dev.Name, dev.UUID, ErrNameTaken)
}

// Deactivate removes the block device of a volume; the volume stays in the
// pool. It returns devmapper.ErrBusy while the device is open, and nil if it is
// not active. A device of somebody else's that has its name is left alone.
func (p *Pool) Deactivate(ctx context.Context, id thin.ID) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := p.control.DeactivateUUID(p.VolumeName(id), p.volumeUUID(id))
	if err != nil && !errors.Is(err, devmapper.ErrNotFound) {
		return err
	}
	return nil
}

// Lookup returns the active volume of that id, or devmapper.ErrNotFound. It
// sees to it that the node is there. A device that a crash left half made is
// removed, and not found.
func (p *Pool) Lookup(ctx context.Context, id thin.ID) (Volume, error) {
	if err := ctx.Err(); err != nil {
		return Volume{}, err
	}
	name := p.VolumeName(id)
	dev, err := p.control.Info(name)
	if err != nil {
		return Volume{}, err
	}
	if dev.UUID != p.volumeUUID(id) {
		return Volume{}, fmt.Errorf("device %s has UUID %q: %w", name, dev.UUID, ErrNameTaken)
	}
	if !dev.Live {
		if _, err := p.control.Remove(name, devmapper.RemoveOptions{}); err != nil {
			return Volume{}, fmt.Errorf("remove %s, which has no table: %w", name, err)
		}
		return Volume{}, fmt.Errorf("device %s: %w", name, devmapper.ErrNotFound)
	}
	if err := devmapper.EnsureNode(dev); err != nil {
		return Volume{}, err
	}
	return p.volume(id, dev), nil
}

func (p *Pool) volume(id thin.ID, dev devmapper.Device) Volume {
	return Volume{
		ID:        id,
		Path:      p.VolumePath(id),
		OpenCount: dev.OpenCount,
		ReadOnly:  dev.ReadOnly,
		Suspended: dev.Suspended,
		Device:    dev,
	}
}

// Suspend waits for the volume's writes to finish, freezing a file system that
// is mounted on it, and holds back new ones until Resume.
func (p *Pool) Suspend(ctx context.Context, id thin.ID) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	_, err := p.control.Suspend(p.VolumeName(id), devmapper.SuspendOptions{})
	return err
}

// Resume lets a suspended volume's writes go on. It takes no context: whoever
// suspended must be able to undo it.
func (p *Pool) Resume(id thin.ID) error {
	_, err := p.control.Resume(p.VolumeName(id))
	return err
}

// Flush puts what was written to an active volume on stable storage.
func (p *Pool) Flush(ctx context.Context, id thin.ID) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return blockdev.Flush(p.VolumePath(id))
}

// Discard gives the space of an active, writable volume back to the pool, and,
// where no other volume shares it, to what the pool lies on.
func (p *Pool) Discard(ctx context.Context, id thin.ID) error {
	path := p.VolumePath(id)
	size, err := blockdev.Size(path)
	if err != nil {
		return err
	}
	return blockdev.Discard(ctx, path, 0, size)
}

// Mapped returns how many bytes of an active volume are mapped, those shared
// with other volumes included.
func (p *Pool) Mapped(ctx context.Context, id thin.ID) (uint64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	name := p.VolumeName(id)
	_, targets, err := p.control.Status(name, devmapper.StatusOptions{NoFlush: true})
	if err != nil {
		return 0, err
	}
	if len(targets) != 1 {
		return 0, fmt.Errorf("device %s has %d targets: %w", name, len(targets), ErrWrongPool)
	}
	status, err := thin.ParseStatus(targets[0].Params)
	if err != nil {
		return 0, fmt.Errorf("device %s: %w", name, err)
	}
	if status.Failed {
		return 0, fmt.Errorf("device %s: %w", name, thin.ErrPoolFailed)
	}
	return status.MappedSectors * SectorBytes, nil
}

// active returns the names of the pool's active volumes.
func (p *Pool) active(ctx context.Context) (map[thin.ID]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	devices, err := p.control.List()
	if err != nil {
		return nil, err
	}
	names := make(map[thin.ID]string)
	for _, dev := range devices {
		number, ours := strings.CutPrefix(dev.UUID, uuidPrefix(p.id))
		if id, err := strconv.ParseUint(number, 10, 32); ours && err == nil {
			names[thin.ID(id)] = dev.Name
		}
	}
	return names, nil
}

// CountActive returns how many volumes are active.
func (p *Pool) CountActive(ctx context.Context) (int, error) {
	names, err := p.active(ctx)
	return len(names), err
}

// Active returns the pool's active volumes, in no particular order.
func (p *Pool) Active(ctx context.Context) ([]Volume, error) {
	names, err := p.active(ctx)
	if err != nil {
		return nil, err
	}
	volumes := make([]Volume, 0, len(names))
	for id, name := range names {
		dev, err := p.control.Info(name)
		if errors.Is(err, devmapper.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		volumes = append(volumes, p.volume(id, dev))
	}
	return volumes, nil
}
