package pool

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
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
