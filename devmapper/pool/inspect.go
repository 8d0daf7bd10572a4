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

// ErrChanged is returned when a pool commits while its metadata is read.
var ErrChanged = errors.New("the pool was changed while its metadata was read")

// inspectedBlocks is the number of metadata blocks cached for a walk through many volumes: 16 MiB.
// The list of 100,000 volumes takes some 2,000 blocks.
const inspectedBlocks = 4096

// An Inspection reads a foreign pool in the kernel, in any mode. It never changes the pool, and
// never makes it commit.
type Inspection struct {
	Device  devmapper.Device
	Table   thin.PoolTable
	Sectors uint64 // the length of the pool's target
	Status  thin.PoolStatus

	pool *Pool
}

// Inspect inspects an active foreign pool. It returns devmapper.ErrNotFound if the pool is not
// active, and ErrWrongPool if thinsnap created it.
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

// LVM returns VG/LV for an LVM pool.
func (i *Inspection) LVM() (volume string, ok bool) {
	if !strings.HasPrefix(i.Device.UUID, lvmPrefix) {
		return "", false
	}
	return lvmVolume(i.Device.Name)
}

// ReadCommitted calls read with the metadata of the last commit, and the pool's data device. It
// returns ErrChanged instead of read's error if the pool committed before read returned.
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
	metadata, err := thinmeta.Open(&keepingReader{ReaderAt: dev, limit: inspectedBlocks})
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

// MappedDevices returns the mapped devices that show a volume of the pool, in no particular order.
// Volume equals Shows.
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
		case errors.Is(err, devmapper.ErrNotFound): // removed meanwhile
		case err != nil:
			return nil, err
		case d.OnPool:
			d.Volume = d.Shows
			all = append(all, d)
		}
	}
	return all, nil
}
