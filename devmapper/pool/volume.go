package pool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/thin"
)

// The kernel refuses to activate volumes while LVM has the pool suspended, and already shortly
// before it shows the pool as suspended. activateTries and activatePause limit the wait until it
// does. The wait for the resume has no limit, because LVM writes its own metadata meanwhile.
const (
	activateTries = 50
	activatePause = 20 * time.Millisecond
)

// Volume is an active thin volume.
type Volume struct {
	ID thin.ID
	// Path is the device's node under /dev/mapper.
	Path string
	// OpenCount is the number of openers of the device, mounts included.
	OpenCount int
	ReadOnly  bool
	Suspended bool
	Device    devmapper.Device
}

// VolumeName returns the name of a volume's mapped device.
func (p *Pool) VolumeName(id thin.ID) string {
	return p.name + "-snap-" + strconv.FormatUint(uint64(id), 10)
}

// VolumePath returns the node of a volume's mapped device. It exists while the volume is active.
func (p *Pool) VolumePath(id thin.ID) string { return devmapper.NodePath(p.VolumeName(id)) }

// uuidStart begins the UUID of each mapped device that thinsnap creates, and the tag of each object
// that LVM creates for it.
const uuidStart = "THINSNAP-"

func uuidPrefix(poolID string) string { return uuidStart + poolID + "-" }

func (p *Pool) volumeUUID(id thin.ID) string {
	return uuidPrefix(p.id) + strconv.FormatUint(uint64(id), 10)
}

// CreateThin creates an empty volume. It returns thin.ErrExists if the id is in use. Its error
// includes thin.ErrNotDone if no volume was created.
func (p *Pool) CreateThin(ctx context.Context, id thin.ID) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", thin.ErrNotDone, err)
	}
	return p.explainGone(p.thin.CreateThin(id))
}

// CreateSnap creates a volume with the content of origin. If origin is active and writable, it must
// be suspended or unused. The errors are those of CreateThin.
func (p *Pool) CreateSnap(ctx context.Context, id, origin thin.ID) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", thin.ErrNotDone, err)
	}
	return p.explainGone(p.thin.CreateSnap(id, origin))
}

// Delete deletes a volume that is not active. It returns thin.ErrNoDevice if the pool has no volume
// with the id.
func (p *Pool) Delete(ctx context.Context, id thin.ID) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return p.explainGone(p.thin.Delete(id))
}

// Activate creates a block device of the given size in bytes, a multiple of 512, for a volume that
// has none. It returns thin.ErrNoDevice if the pool has no volume with the id, and ErrNameTaken if
// a foreign device has the volume's name.
func (p *Pool) Activate(ctx context.Context, id thin.ID, bytes uint64, readOnly bool) (Volume, error) {
	if err := ctx.Err(); err != nil {
		return Volume{}, err
	}
	p.loading.RLock()
	defer p.loading.RUnlock()
	dev, err := p.activate(id, bytes, readOnly)
	// The kernel returns EINVAL if the pool has failed, or is suspended, which LVM may do at any
	// time.
	for tries := 0; errors.Is(err, unix.EINVAL); tries++ {
		failed, suspended := p.state()
		if failed || tries >= activateTries {
			break
		}
		if suspended {
			tries = 0 // the wait for the resume has no limit
		}
		select {
		case <-time.After(activatePause):
		case <-ctx.Done():
			return Volume{}, errors.Join(ctx.Err(), err)
		}
		dev, err = p.activate(id, bytes, readOnly)
	}
	switch {
	case errors.Is(err, unix.ENODATA):
		return Volume{}, fmt.Errorf("%w: %w", err, thin.ErrNoDevice)
	case errors.Is(err, devmapper.ErrExists):
		return Volume{}, p.explainTaken(id, err)
	case err != nil:
		if _, gone := p.number(); errors.Is(gone, ErrNotActive) && !errors.Is(err, ErrNotActive) {
			err = fmt.Errorf("%w: %w", err, gone)
		}
		return Volume{}, err
	}
	return p.volume(id, dev), nil
}

// state reports whether the pool has failed or is gone, and whether it is suspended.
func (p *Pool) state() (failed, suspended bool) {
	dev, targets, err := p.control.Status(p.device, devmapper.StatusOptions{NoFlush: true})
	if err != nil || len(targets) != 1 {
		return true, false
	}
	status, err := thin.ParsePoolStatus(targets[0].Params)
	return err != nil || status.Mode == thin.ModeFail || status.Mode == thin.ModeError, dev.Suspended
}

func (p *Pool) activate(id thin.ID, bytes uint64, readOnly bool) (devmapper.Device, error) {
	number, err := p.number()
	if err != nil {
		return devmapper.Device{}, err
	}
	target := thin.Target(number, id, bytes/devmapper.SectorBytes)
	return p.control.Activate(p.VolumeName(id), p.volumeUUID(id), []devmapper.Target{target}, readOnly)
}

// explainTaken returns ErrNameTaken if a foreign device has the volume's name, and otherwise err.
func (p *Pool) explainTaken(id thin.ID, err error) error {
	dev, infoErr := p.control.Info(p.VolumeName(id))
	if infoErr != nil || dev.UUID == p.volumeUUID(id) {
		return err
	}
	return fmt.Errorf("device %s has UUID %q (does another root have the same pool.name?): %w", dev.Name, dev.UUID,
		ErrNameTaken)
}

// Deactivate removes the block device of a volume; the volume stays in the pool. It returns
// devmapper.ErrBusy while the device is open, and nil if the volume is not active. It does not touch
// a foreign device with the volume's name.
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

// Lookup returns an active volume, or devmapper.ErrNotFound, and creates its node if that is
// missing. A device without a table, left by a crash, is removed and counts as not found.
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

// Suspend completes the volume's writes, freezes the file system that is mounted on it, and holds
// back new writes until Resume.
func (p *Pool) Suspend(ctx context.Context, id thin.ID) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if _, err := p.control.Suspend(devmapper.ByUUID(p.volumeUUID(id)), devmapper.SuspendOptions{}); err != nil {
		return fmt.Errorf("device %s: %w", p.VolumeName(id), err)
	}
	return nil
}

// Resume ends Suspend. It takes no context, because a caller must be able to undo its Suspend.
func (p *Pool) Resume(id thin.ID) error {
	if _, err := p.control.Resume(devmapper.ByUUID(p.volumeUUID(id))); err != nil {
		return fmt.Errorf("device %s: %w", p.VolumeName(id), err)
	}
	return nil
}

// IsActive reports, without an ioctl, whether the volume's node leads to its device. If another
// program, such as dmsetup, has removed the device, the node is gone or leads to another device.
func (p *Pool) IsActive(id thin.ID) bool {
	number, err := blockNumber(p.VolumePath(id))
	if err != nil {
		return false
	}
	uuid, _ := uuidAt(deviceNumber(number))
	return uuid == p.volumeUUID(id)
}

// openVolume opens the node of an active volume. It returns ErrWrongDevice if the node leads to
// another device: a node can outlive its device, whose number another device then gets. It takes no
// ioctl.
func (p *Pool) openVolume(id thin.ID, flag int) (*os.File, error) {
	f, err := devmapper.OpenFile(p.VolumePath(id), flag)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(int(f.Fd()), &st); err == nil {
		number := deviceNumber(st.Rdev)
		if uuid, _ := uuidAt(number); uuid != p.volumeUUID(id) {
			err = fmt.Errorf("%s leads to device %s, which has UUID %q: %w", f.Name(), number, uuid, ErrWrongDevice)
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// SetReadOnly makes an active volume refuse writes, or accept them again if it was activated for
// writing ([blockdev.SetReadOnly] names the exceptions). With readOnly it returns devmapper.ErrBusy
// for a mounted volume: unmounting an xfs would leave a log to replay (fs/xfs/xfs_log.c:
// xfs_log_unmount_write). It takes no context, because a caller must be able to undo it.
func (p *Pool) SetReadOnly(id thin.ID, readOnly bool) error {
	flag := os.O_RDONLY
	if readOnly {
		flag |= unix.O_EXCL // EBUSY if mounted, because mounts are exclusive, too
	}
	f, err := p.openVolume(id, flag)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("make device %s refuse writes: %w: %w", p.VolumeName(id), err, devmapper.ErrBusy)
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return blockdev.SetReadOnly(f, readOnly)
}

// Flush writes the data of an active volume to stable storage.
func (p *Pool) Flush(ctx context.Context, id thin.ID) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	// Read-only, because closing a writable descriptor makes udev probe the device.
	f, err := p.openVolume(id, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// discardAtMost limits one discard, even if it frees few blocks: the kernel searches the whole
// range, and cannot be interrupted.
const discardAtMost = 1 << 40

// Discard frees the blocks of an active, writable volume. Blocks that no other volume maps are free
// in the pool, and discarded on the device or file below. It returns devmapper.ErrBusy for a
// mounted volume. It discards in pieces and awaits turn before each ([blockdev.Discard]). Pieces
// are larger if the whole volume maps at most one piece.
func (p *Pool) Discard(ctx context.Context, id thin.ID, turn blockdev.Turn) error {
	f, err := p.openVolume(id, os.O_RDWR|unix.O_EXCL)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("discard device %s: %w: %w", p.VolumeName(id), err, devmapper.ErrBusy)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	piece := uint64(blockdev.DiscardPiece)
	if uint64(size) > piece {
		mapped, err := p.Mapped(ctx, id)
		if err != nil {
			return err
		}
		if mapped <= piece {
			piece = min(uint64(size), discardAtMost)
		}
	}
	return blockdev.DiscardPieces(ctx, f, 0, uint64(size), piece, p.blockBytes, turn)
}

// Mapped returns the mapped bytes of an active volume, blocks shared with other volumes included.
func (p *Pool) Mapped(ctx context.Context, id thin.ID) (uint64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	name := p.VolumeName(id)
	_, targets, err := p.control.Status(devmapper.ByUUID(p.volumeUUID(id)), devmapper.StatusOptions{NoFlush: true})
	if err != nil {
		return 0, fmt.Errorf("device %s: %w", name, err)
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
	return status.MappedSectors * devmapper.SectorBytes, nil
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

// CountActive returns the number of active volumes.
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
