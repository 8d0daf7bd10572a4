package provision

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/pool/repair"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// loop is the mode of a pool in two files in the root directory.
type loop struct{}

// The paths of a loop pool's files, relative to the root directory.
const (
	poolDir      = "pool"
	dataFile     = poolDir + "/data"
	metadataFile = poolDir + "/metadata"
)

// New implements Mode.
func (loop) New(_ context.Context, c config.Config) (metadata.PoolRecord, error) {
	rec := metadata.PoolRecord{
		ID:        rand.Text(),
		Mode:      metadata.ModeLoop,
		Name:      c.Pool.Name,
		BlockSize: uint64(c.Pool.BlockSize),
		Created:   now(),
		Loop: metadata.LoopFiles{
			DataFile:     filepath.Join(c.Root, dataFile),
			MetadataFile: filepath.Join(c.Root, metadataFile),
			Allocated:    true,
		},
	}
	for _, file := range []string{rec.Loop.DataFile, rec.Loop.MetadataFile} {
		if _, err := os.Lstat(file); !errors.Is(err, os.ErrNotExist) {
			return rec, fmt.Errorf("%s exists, but the store records no pool: "+
				"restore the store that belongs to it, or move it away: %w", file, errdefs.ErrFailedPrecondition)
		}
	}
	return rec, nil
}

// Same implements Mode.
func (loop) Same(rec metadata.PoolRecord, c config.Config) error {
	if rec.BlockSize != uint64(c.Pool.BlockSize) {
		return settingError("pool.block_size", rec.BlockSize, uint64(c.Pool.BlockSize))
	}
	return nil
}

// Plan implements Mode.
func (loop) Plan(_ context.Context, rec metadata.PoolRecord, c config.Config) ([]string, error) {
	data, err := firstSize(loopSpec(rec), c)
	if err != nil {
		return nil, err
	}
	return []string{
		fmt.Sprintf("fallocate --length %d %s", uint64(c.Pool.Loop.MetadataSize), rec.Loop.MetadataFile),
		fmt.Sprintf("fallocate --length %d %s", data, rec.Loop.DataFile),
	}, nil
}

// leastData is the minimum size of a new data file, in bytes: it holds a base volume and some data.
// It is also the minimum of pool.loop.data_size.
const leastData = 64 << 20

// firstSize returns the size, in bytes, of the new data file.
func firstSize(spec pool.LoopSpec, c config.Config) (uint64, error) {
	grows := c.Pool.AutoextendThreshold < 100
	size, err := spec.FirstSize(grows, leastData, uint64(c.Pool.Loop.DataSize), uint64(c.Pool.Loop.MetadataSize))
	if errors.Is(err, unix.ENOSPC) {
		err = fmt.Errorf("make pool %s: %w: make room on it, or choose another root: %w", spec.Name, err,
			errdefs.ErrResourceExhausted)
	}
	return size, err
}

// Open implements Mode.
func (loop) Open(
	ctx context.Context, control *devmapper.Control, rec metadata.PoolRecord, c config.Config,
) (*pool.Pool, metadata.PoolRecord, error) {
	// gofail: var afterPoolRecord struct{}
	spec := loopSpec(rec)
	// At a threshold of 100 nothing is extended; the kernel's event then serves monitoring only.
	spec.LowWaterPercent = 100 - uint64(c.Pool.AutoextendThreshold)
	if !rec.Complete {
		log.G(ctx).WithField("pool", rec.Name).WithField("data", rec.Loop.DataFile).Info("making a loop pool")
		data, err := firstSize(spec, c)
		if err != nil {
			return nil, rec, err
		}
		if err := spec.CreateFiles(ctx, data, uint64(c.Pool.Loop.MetadataSize)); err != nil {
			return nil, rec, snapshotter.Classify(err)
		}
		// gofail: var afterLoopFiles struct{}
		if spec.SectorBytes, err = spec.ChooseSectorBytes(); err != nil {
			return nil, rec, err
		}
		rec.Loop.SectorBytes = spec.SectorBytes
	}
	p, err := spec.Open(ctx, control, rec.Complete)
	if isPrecondition(err) {
		return nil, rec, asPreconditionOf(rec, err)
	}
	if failed := (*devmapper.Error)(nil); rec.Complete && errors.As(err, &failed) && failed.Op == "load" {
		return nil, rec, fmt.Errorf("%w: the kernel rejects the pool's metadata in %s (see dmesg); "+
			"if the disk below it is healthy, `thinsnap pool repair` repairs the metadata and keeps a backup: %w",
			err, rec.Loop.MetadataFile, errdefs.ErrDataLoss)
	}
	if err != nil {
		return p, rec, err
	}
	allocateMetadata(ctx, p)
	if rec.Complete {
		return p, rec, nil
	}
	// gofail: var beforePoolFormed struct{}
	rec.Complete = true
	return p, rec, nil
}

// allocateMetadata allocates the holes that an earlier version or a repair left in the metadata
// file. It warns if the disk has less space than the pool promises.
func allocateMetadata(ctx context.Context, p *pool.Pool) {
	logger := log.G(ctx).WithField("pool", p.Name())
	if _, err := p.KeepAllocated(ctx); err != nil {
		logger.WithError(err).Warn("the disk below the pool has less space than the pool promises: writes may fail")
	}
	if reason := p.NotAllocated(); reason != "" {
		logger.Warn("the pool's data may not be allocated on the disk below it: " + reason +
			": if that disk is full, writes to the pool fail")
	}
}

// OpenLoaded implements Mode.
func (loop) OpenLoaded(control *devmapper.Control, rec metadata.PoolRecord) (*pool.Pool, error) {
	return loopSpec(rec).OpenLoaded(control)
}

// Files implements Mode.
func (loop) Files(rec metadata.PoolRecord) []string {
	return []string{rec.Loop.DataFile, rec.Loop.MetadataFile}
}

// RootFiles implements Mode.
func (loop) RootFiles() []string { return []string{poolDir, dataFile, metadataFile} }

// ReadMetadata implements Mode.
func (loop) ReadMetadata(_ context.Context, rec metadata.PoolRecord, read func(*thinmeta.Metadata) error) error {
	return loopSpec(rec).ReadMetadata(read)
}

// CheckMetadata implements Mode.
func (l loop) CheckMetadata(ctx context.Context, rec metadata.PoolRecord) (repair.Report, error) {
	m, err := l.RepairableMetadata(ctx, rec)
	if err != nil {
		return repair.Report{}, err
	}
	return repair.Check(ctx, m.File)
}

// RepairableMetadata implements Mode.
func (loop) RepairableMetadata(ctx context.Context, rec metadata.PoolRecord) (repair.Metadata, error) {
	data, err := os.Stat(rec.Loop.DataFile)
	if err != nil {
		return repair.Metadata{}, err
	}
	return repair.Metadata{
		File:          rec.Loop.MetadataFile,
		BlockBytes:    rec.BlockSize,
		DataBytes:     uint64(data.Size()),
		TransactionID: rec.TransactionID,
		Used:          rec.TransactionID > 0,
	}, requireDetached(ctx, rec.Loop.MetadataFile)
}

const (
	// detachTries and detachPause bound the wait for the kernel to detach a loop device after the
	// pool on it is removed.
	detachTries = 50
	detachPause = 20 * time.Millisecond
)

// requireDetached fails if a loop device is attached to a file: its users would keep using the
// content that a repair replaces.
func requireDetached(ctx context.Context, file string) error {
	info, err := os.Lstat(file)
	if err != nil {
		return err
	}
	for tries := 1; ; tries++ {
		loops, err := blockdev.Loops()
		if err != nil {
			return err
		}
		attached := ""
		for _, l := range loops {
			if l.SameFile(info) {
				attached = l.Path
			}
		}
		if attached == "" || ctx.Err() != nil {
			return ctx.Err()
		}
		if tries == detachTries {
			return fmt.Errorf("%s is attached to %s: stop its users, and detach it with `losetup --detach %s`: %w",
				attached, file, attached, errdefs.ErrUnavailable)
		}
		time.Sleep(detachPause)
	}
}

// Destroy implements Mode.
func (l loop) Destroy(
	ctx context.Context, _ *metadata.Store, control *devmapper.Control, rec metadata.PoolRecord,
) error {
	if err := closePool(ctx, l, control, rec); err != nil {
		return err
	}
	files := rec.Loop
	return errors.Join(removeFile(files.DataFile), removeFile(files.MetadataFile), repair.RemoveAll(files.MetadataFile))
}

func removeFile(path string) error {
	if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Destruction implements Mode.
func (loop) Destruction(rec metadata.PoolRecord, root string) (will, done string) {
	return fmt.Sprintf("this removes pool %s in %s, with all its snapshots", rec.Name, root),
		fmt.Sprintf("destroyed pool %s", rec.Name)
}

// ExtendGrace implements Mode.
func (loop) ExtendGrace() time.Duration { return 0 }

// inRoot returns the files with absolute paths. Earlier versions recorded absolute paths, which
// become wrong when the root is moved; these are mapped into this root.
func inRoot(files metadata.LoopFiles, root string) metadata.LoopFiles {
	made := strings.TrimSuffix(files.DataFile, "/"+dataFile)
	if files.DataFile == filepath.Join(made, dataFile) && files.MetadataFile == filepath.Join(made, metadataFile) {
		files.DataFile, files.MetadataFile = dataFile, metadataFile
	}
	for _, file := range []*string{&files.DataFile, &files.MetadataFile} {
		if *file != "" && !filepath.IsAbs(*file) {
			*file = filepath.Join(root, *file)
		}
	}
	return files
}

// relative returns the files with paths relative to the root, if they are in it.
func relative(files metadata.LoopFiles, root string) metadata.LoopFiles {
	for _, file := range []*string{&files.DataFile, &files.MetadataFile} {
		if below, err := filepath.Rel(root, *file); err == nil && filepath.IsLocal(below) {
			*file = below
		}
	}
	return files
}

func loopSpec(rec metadata.PoolRecord) pool.LoopSpec {
	return pool.LoopSpec{
		ID:           rec.ID,
		Name:         rec.Name,
		BlockBytes:   rec.BlockSize,
		DataFile:     rec.Loop.DataFile,
		MetadataFile: rec.Loop.MetadataFile,
		SectorBytes:  rec.Loop.SectorBytes,
		Sparse:       !rec.Loop.Allocated,
	}
}

// Growth implements Mode.
func (loop) Growth(c config.Config) pool.Growth {
	g := growth(c)
	g.DataStep, g.DataLimit = dataStep, uint64(c.Pool.Loop.DataSize)
	return g
}

// dataStep is the minimum step, in bytes, by which the data file grows: each step interrupts the
// I/O of all volumes for some milliseconds.
const dataStep = 1 << 30
