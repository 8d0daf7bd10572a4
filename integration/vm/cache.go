package vm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// CacheDir returns the directory of kernels, initial RAM disks and built programs: $THINSNAP_CACHE, else
// $XDG_CACHE_HOME/thinsnap, else ~/.cache/thinsnap. It need not exist.
func CacheDir() (string, error) {
	if dir := os.Getenv("THINSNAP_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache directory: %w", err)
	}
	return filepath.Join(dir, "thinsnap"), nil
}

// cached builds a file of the cache if it is missing.
func cached(path string, build func() ([]byte, error)) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	content, err := build()
	if err != nil {
		return err
	}
	return writeFile(path, content)
}

// writeFile writes a file and renames it, so that runners that start at the same time read no half-written files.
func writeFile(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // already renamed after a success
	if _, err := f.Write(data); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Chmod(f.Name(), 0o644); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
