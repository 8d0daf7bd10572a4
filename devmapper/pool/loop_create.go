package pool

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/blockdev"
)

// CreateFiles makes the two sparse files of a loop pool, of the given sizes in bytes. A smaller
// file is extended, a larger one left alone, so it can be repeated after a crash.
func (s LoopSpec) CreateFiles(dataBytes, metadataBytes uint64) error {
	for file, bytes := range map[string]uint64{s.DataFile: dataBytes, s.MetadataFile: metadataBytes} {
		if err := createSparse(file, int64(bytes)); err != nil {
			return fmt.Errorf("make %s for pool %s: %w", file, s.Name, err)
		}
	}
	return nil
}

// ChooseSectorBytes returns the SectorBytes for a new pool on the spec's files: the least with which
// the kernel supports direct I/O on their disk, 512 if it does with none.
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
