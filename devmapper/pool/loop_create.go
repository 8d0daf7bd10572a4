package pool

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/blockdev"
)

// CreateFiles creates and allocates the two files of a loop pool, of the given sizes in bytes. It
// extends a smaller file and keeps a larger one, so a call can be repeated after a crash.
func (s LoopSpec) CreateFiles(ctx context.Context, dataBytes, metadataBytes uint64) error {
	if err := createFile(ctx, s.MetadataFile, int64(metadataBytes), false); err != nil {
		return fmt.Errorf("make %s for pool %s: %w", s.MetadataFile, s.Name, err)
	}
	if err := createFile(ctx, s.DataFile, int64(dataBytes), s.Sparse); err != nil {
		return fmt.Errorf("make %s for pool %s: %w", s.DataFile, s.Name, err)
	}
	return nil
}

// ChooseSectorBytes returns the SectorBytes for a new pool on the spec's files: the smallest with
// which the kernel supports direct I/O on their disk, or 512 if there is none.
func (s LoopSpec) ChooseSectorBytes() (uint64, error) {
	const least, most = 512, 4096
	for bytes := uint64(least); bytes <= most; bytes *= 2 {
		s.SectorBytes = bytes
		loop, err := blockdev.LoopAttach(s.DataFile, s.loopOptions())
		if err != nil {
			return 0, err
		}
		if err := loop.Close(); err != nil {
			return 0, err
		}
		if loop.DirectIO {
			return bytes, nil
		}
	}
	return least, nil
}

func createFile(ctx context.Context, path string, bytes int64, sparse bool) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	// gofail: var afterCreateFile struct{}
	if err := fillFile(ctx, f, bytes, sparse); err != nil {
		return err
	}
	// gofail: var afterAllocateFile struct{}
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

func fillFile(ctx context.Context, f *os.File, bytes int64, sparse bool) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if sparse && info.Size() < bytes {
		return f.Truncate(bytes)
	}
	if err := growFile(ctx, f, bytes); err != nil || sparse || noSpaceReason(f) != "" {
		return err
	}
	_, err = allocate(ctx, f, max(bytes, info.Size()))
	return err
}

const (
	// firstDataBytes is the initial size of the data file of a pool that grows.
	firstDataBytes = 2 << 30
	// A pool leaves the reserve free on its disk when it is created and when it grows by itself. It
	// is a twentieth of the disk, and at least leastReserve, or a tenth of a small disk.
	leastReserve        = 1 << 30
	reserveShare        = 20
	reserveOfSmallDisks = 10
)

// FirstSize returns the initial size, in bytes, of a new pool's data file: most, but no more than 2
// GiB if the pool grows. It is smaller if the disk would otherwise lack room for the metadata and a
// reserve. It returns ENOSPC if it would be smaller than least.
func (s LoopSpec) FirstSize(grows bool, least, most, metadataBytes uint64) (uint64, error) {
	if s.Sparse {
		return most, nil // an earlier version began to create it
	}
	if grows {
		most = min(most, firstDataBytes)
	}
	least = min(least, most)
	dir := filepath.Dir(s.DataFile)
	disk, err := statDisk(dir)
	for os.IsNotExist(err) && dir != filepath.Dir(dir) {
		dir = filepath.Dir(dir)
		disk, err = statDisk(dir)
	}
	if err != nil {
		return 0, err
	}
	// Files that a crash left already have their space.
	data, metadata := fileBytes(s.DataFile), fileBytes(s.MetadataFile)
	needed := disk.reserve() + metadataBytes - min(metadataBytes, metadata)
	size := max(data, disk.free+data-min(disk.free+data, needed))
	size = min(most, size) / s.BlockBytes * s.BlockBytes
	if size < least {
		return 0, fmt.Errorf("the file system of %s has %d bytes free, and a pool needs %d: %w",
			dir, disk.free, least-min(least, data)+needed, unix.ENOSPC)
	}
	return size, nil
}

// fileBytes returns the allocated size of a file, or 0 if there is no such file.
func fileBytes(path string) uint64 {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0
	}
	return uint64(st.Blocks) * statBlockBytes
}
