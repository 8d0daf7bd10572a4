package pool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
)

// ErrChanged is returned when a pool has committed while its metadata was read.
var ErrChanged = errors.New("the pool was changed while its metadata was read")

// inspectedBlocks is how many blocks of metadata are kept for a walk through many volumes, 16 MiB: those
// that list 100,000 volumes are some 2,000.
const inspectedBlocks = 4096

// An Inspection is a foreign pool in the kernel that is only looked at, in whichever state. Nothing
// that it does changes the pool, and nothing has the pool commit.
type Inspection struct {
	Device  devmapper.Device
	Table   thin.PoolTable
	Sectors uint64 // the length of the pool's target
	Status  thin.PoolStatus

	pool *Pool
}

// Inspect looks at a foreign pool that is active: devmapper.ErrNotFound if it is not, or
// ErrWrongPool if thinsnap made it.
func (s ExistingSpec) Inspect(ctx context.Context, control *devmapper.Control) (*Inspection, error) {
	found, err := s.inspect(ctx, control)
	if err != nil {
		return nil, fmt.Errorf("pool %s: %w", s.Device, err)
	}
	return found, nil
}

func (s ExistingSpec) inspect(ctx context.Context, control *devmapper.Control) (*Inspection, error) {
	dev, err := s.Find(control)
	if err != nil {
		return nil, err
	}
	p, l, err := attach(control, dev, s.ID, s.Name, s.BlockBytes, existingBackend{})
	if err != nil {
		return nil, err
	}
	if err := p.checkTags(ctx); err != nil {
		return nil, err
	}
	status, err := p.thin.Status(true)
	if err != nil {
		return nil, err
	}
	return &Inspection{Device: l.device, Table: l.table, Sectors: l.target.Length, Status: status, pool: p}, nil
}

// BlockBytes returns the size of the pool's blocks, in bytes.
func (i *Inspection) BlockBytes() uint64 { return i.pool.blockBytes }

// LVM returns VG/LV for a pool of LVM's.
func (i *Inspection) LVM() (volume string, ok bool) {
	if !strings.HasPrefix(i.Device.UUID, lvmPrefix) {
		return "", false
	}
	return lvmVolume(i.Device.Name)
}

// ReadCommitted calls read with the metadata of the last commit, and the pool's data device. It is
// ErrChanged if the pool has committed by the time that read returns: what was read is not of one
// commit then, and the error of read means nothing.
func (i *Inspection) ReadCommitted(ctx context.Context, read func(m *thinmeta.Metadata, data io.ReaderAt) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := i.readCommitted(read)
	if err != nil {
		return fmt.Errorf("read pool %s: %w", i.Device.Name, err)
	}
	return nil
}

func (i *Inspection) readCommitted(read func(m *thinmeta.Metadata, data io.ReaderAt) error) (err error) {
	dataPath, err := blockdev.Path(i.Table.Data)
	if err != nil {
		return err
	}
	dev, err := i.pool.openMetadata()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	data, err := blockdev.OpenDirect(dataPath)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, data.Close()) }()
	metadata, err := thinmeta.Open(&keepingReader{ReaderAt: dev, most: inspectedBlocks})
	if err != nil {
		return err
	}
	readErr := read(metadata, data)
	current, err := metadata.Current()
	switch {
	case err != nil:
		return errors.Join(readErr, err)
	case !current:
		return ErrChanged
	}
	return readErr
}

// MappedDevices returns the mapped devices that show a volume of the pool, in no particular order. Volume
// is what a device shows.
func (i *Inspection) MappedDevices(ctx context.Context) ([]MappedDevice, error) {
	devices, err := i.pool.control.List()
	if err != nil {
		return nil, err
	}
	number := i.Device.Number()
	var all []MappedDevice
	for _, dev := range devices {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		d, err := i.pool.mappedDevice(dev.Name, number, 0, false)
		switch {
		case errors.Is(err, devmapper.ErrNotFound): // gone meanwhile
		case err != nil:
			return nil, err
		case d.OnPool:
			d.Volume = d.Shows
			all = append(all, d)
		}
	}
	return all, nil
}
