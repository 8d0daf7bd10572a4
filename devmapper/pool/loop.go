package pool

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/thin"
)

// lowWaterBytes is the free data space below which the kernel raises an event,
// unless a share of the pool was named.
const lowWaterBytes = 2 << 30

// LoopSpec describes a pool on two sparse files.
type LoopSpec struct {
	// ID identifies the pool; it is part of the UUID of every mapped device.
	ID string
	// Name is the name of the pool's mapped device.
	Name string
	// BlockBytes is the pool's block size: a multiple of 64 KiB, at most 1 GiB.
	BlockBytes uint64
	// DataFile and MetadataFile are absolute paths.
	DataFile, MetadataFile string
	// LowWaterPercent is the share of the data that is free, 1 to 100, below which the
	// kernel raises an event; 0 for 2 GiB.
	LowWaterPercent uint64
}

// CreateLoopFiles makes the two sparse files of a loop pool, of so many bytes.
// Files that are there already are grown if they are smaller, and left as they
// are otherwise, so that it can be repeated after a crash.
func CreateLoopFiles(spec LoopSpec, dataBytes, metadataBytes uint64) error {
	for file, bytes := range map[string]uint64{spec.DataFile: dataBytes, spec.MetadataFile: metadataBytes} {
		if err := createSparse(file, int64(bytes)); err != nil {
			return fmt.Errorf("make %s for pool %s: %w", file, spec.Name, err)
		}
	}
	return nil
}

func createSparse(path string, bytes int64) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	// gofail: var afterCreateFile struct{}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() < bytes {
		if err := f.Truncate(bytes); err != nil {
			return err
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// OpenLoop brings a loop pool into the kernel, or takes over one that is there,
// as it is after a restart of the daemon.
//
// With formed, the pool is expected to have been used: metadata that holds no
// pool is then ErrWrongPool, because the kernel would format it, and so lose
// every volume without a word.
func OpenLoop(ctx context.Context, control *devmapper.Control, spec LoopSpec, formed bool) (*Pool, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p, err := OpenLoaded(control, spec)
	if err == nil || !errors.Is(err, devmapper.ErrNotFound) {
		return p, err
	}
	if formed {
		if err := checkMetadataFile(spec.MetadataFile); err != nil {
			return nil, fmt.Errorf("pool %s: %w", spec.Name, err)
		}
	}
	p = newPool(control, spec)
	if err := p.load(spec); err != nil {
		return nil, fmt.Errorf("load pool %s: %w", spec.Name, err)
	}
	return p, nil
}

// OpenLoaded takes over a loop pool that is in the kernel. It returns
// devmapper.ErrNotFound if it is not.
func OpenLoaded(control *devmapper.Control, spec LoopSpec) (*Pool, error) {
	p := newPool(control, spec)
	if err := p.adopt(spec); err != nil {
		return nil, fmt.Errorf("pool %s: %w", spec.Name, err)
	}
	return p, nil
}

func newPool(control *devmapper.Control, spec LoopSpec) *Pool {
	return &Pool{
		control:         control,
		thin:            thin.NewPool(control, spec.Name),
		id:              spec.ID,
		name:            spec.Name,
		device:          spec.Name,
		uuid:            poolUUID(spec.ID),
		blockBytes:      spec.BlockBytes,
		lowWaterPercent: spec.LowWaterPercent,
		backing:         Backing{DataFile: spec.DataFile, MetadataFile: spec.MetadataFile},
	}
}

// adopt fills in what the kernel has of the pool, having seen that it is ours.
func (p *Pool) adopt(spec LoopSpec) error {
	dev, err := p.control.Info(spec.Name)
	if err != nil {
		return err
	}
	if dev.UUID != poolUUID(spec.ID) {
		return fmt.Errorf("device %s has UUID %q: %w; choose another pool.name, or remove that device",
			spec.Name, dev.UUID, ErrNameTaken)
	}
	if !dev.Live {
		// A crash between making the device and loading it leaves this.
		if _, err := p.control.Remove(spec.Name, devmapper.RemoveOptions{}); err != nil {
			return err
		}
		return fmt.Errorf("device %s had no table: %w", spec.Name, devmapper.ErrNotFound)
	}
	if dev.Suspended {
		if dev, err = p.control.Resume(spec.Name); err != nil {
			return err
		}
	}
	table, err := p.table()
	if err != nil {
		return err
	}
	if p.backing.DataPath, err = backedBy(table.Data, spec.DataFile); err != nil {
		return err
	}
	if p.backing.MetadataPath, err = backedBy(table.Metadata, spec.MetadataFile); err != nil {
		return err
	}
	p.backing.DataDevice, p.backing.MetadataDevice = table.Data, table.Metadata
	p.number = dev.Number()
	return devmapper.EnsureNode(dev)
}

// backedBy returns the node of the loop device with that number, once it has
// seen that the device stands on file.
func backedBy(number, file string) (string, error) {
	info, err := blockdev.LoopInfoByNumber(number)
	if err != nil {
		return "", err
	}
	want, err := os.Stat(file)
	if err != nil {
		return "", err
	}
	if !info.SameFile(want) {
		return "", fmt.Errorf("loop device %s stands on %s, not on %s: %w", number, info.BackingFile, file, ErrWrongPool)
	}
	return info.Path, nil
}

func (p *Pool) load(spec LoopSpec) error {
	metadata, err := blockdev.LoopAttach(spec.MetadataFile, blockdev.LoopOptions{DirectIO: true})
	if err != nil {
		return err
	}
	// The mapped device holds the loop devices from here on; without it they
	// are gone with the last of these two.
	defer metadata.Close()
	// gofail: var afterAttachMetadata struct{}
	data, err := blockdev.LoopAttach(spec.DataFile, blockdev.LoopOptions{DirectIO: true})
	if err != nil {
		return err
	}
	defer data.Close()
	// gofail: var afterAttachData struct{}
	bytes, err := blockdev.Size(data.Path)
	if err != nil {
		return err
	}
	table := thin.PoolTable{
		Metadata:       metadata.Number(),
		Data:           data.Number(),
		BlockSectors:   uint32(spec.BlockBytes / SectorBytes),
		LowWaterBlocks: p.lowWaterBlocks(bytes / spec.BlockBytes),
	}
	// Whole blocks only: the kernel refuses a pool that ends within one.
	target, err := table.Target(bytes / spec.BlockBytes * spec.BlockBytes / SectorBytes)
	if err != nil {
		return err
	}
	dev, err := p.control.Activate(spec.Name, poolUUID(spec.ID), []devmapper.Target{target}, false)
	if err != nil {
		return err
	}
	// gofail: var afterPoolLoad struct{}
	p.number = dev.Number()
	p.backing.DataDevice, p.backing.MetadataDevice = table.Data, table.Metadata
	p.backing.DataPath, p.backing.MetadataPath = data.Path, metadata.Path
	return nil
}

// checkMetadataFile looks for the superblock of a pool's metadata
// (drivers/md/dm-thin-metadata.c: THIN_SUPERBLOCK_MAGIC at byte 32).
func checkMetadataFile(path string) error {
	const magic, offset = 27022010, 32
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("metadata file %s is missing: %w", path, ErrWrongPool)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	var b [8]byte
	if _, err := f.ReadAt(b[:], offset); err != nil {
		return fmt.Errorf("read the superblock in %s: %w", path, err)
	}
	if binary.LittleEndian.Uint64(b[:]) != magic {
		return fmt.Errorf("%s holds no pool metadata: %w", path, ErrWrongPool)
	}
	return nil
}
