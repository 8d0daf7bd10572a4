package adopt

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// newSuffix is the suffix of an incomplete file.
const newSuffix = ".new"

// writeFile replaces a file. The file is on stable storage when it returns nil.
func writeFile(path string, content []byte, mode fs.FileMode) error {
	return replaceFile(path, mode, func(f *os.File) error {
		_, err := f.Write(content)
		return err
	})
}

// copyFile copies a file like writeFile, and returns the SHA-256 of the content. The copy has holes
// in place of blocks of zeros.
func copyFile(from, to string) (sum string, err error) {
	source, err := os.OpenFile(from, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return "", explain("copy", from, err)
	}
	defer source.Close()
	h := sha256.New()
	err = replaceFile(to, 0o600, func(f *os.File) error { return copySparse(f, io.TeeReader(source, h)) })
	return hex.EncodeToString(h.Sum(nil)), err
}

// copySparse copies to an empty file, and leaves holes in place of blocks of zeros.
func copySparse(f *os.File, from io.Reader) error {
	block, zeros := make([]byte, 4096), make([]byte, 4096)
	for at := int64(0); ; {
		n, err := io.ReadFull(from, block)
		if n > 0 && !bytes.Equal(block[:n], zeros[:n]) {
			if _, err := f.WriteAt(block[:n], at); err != nil {
				return err
			}
		}
		at += int64(n)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return f.Truncate(at)
		case err != nil:
			return err
		}
	}
}

// replaceFile replaces a file by one with the content that write writes.
func replaceFile(path string, mode fs.FileMode, write func(*os.File) error) (err error) {
	defer func() { err = explain("write", path, err) }()
	temporary := path + newSuffix
	if err := remove(temporary); err != nil {
		return err
	}
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	// The umask may have reduced the mode.
	err = errors.Join(f.Chmod(mode), write(f))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		return errors.Join(err, remove(temporary))
	}
	return syncDirectory(path)
}

// syncDirectory makes changes of the names in a file's directory survive a crash.
func syncDirectory(file string) error {
	dir, err := os.Open(filepath.Dir(file))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// syncAbove calls syncDirectory for all directories above a file, up to the root of its file
// system.
func syncAbove(file string) error {
	var first, st unix.Stat_t
	for dir := filepath.Dir(file); ; dir = filepath.Dir(dir) {
		if err := unix.Stat(dir, &st); err != nil {
			return &fs.PathError{Op: "stat", Path: dir, Err: err}
		}
		if first.Dev == 0 {
			first = st
		}
		if st.Dev != first.Dev {
			return nil
		}
		if err := syncDirectory(filepath.Join(dir, "x")); err != nil {
			return err
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

// removeExcept removes all entries of a directory except the given names.
func removeExcept(dir string, keep ...string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return explain("read", dir, err)
	}
	for _, e := range entries {
		if slices.Contains(keep, e.Name()) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return explain("remove", filepath.Join(dir, e.Name()), err)
		}
	}
	return nil
}

// remove removes a file that may not exist.
func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func checksum(path string) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return "", explain("read", path, err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", explain("read", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// removeSynced removes a file that may not exist. It does not reappear after a crash.
func removeSynced(path string) error {
	return explain("remove", path, errors.Join(remove(path), syncDirectory(path)))
}

// allocated returns the number of bytes that a file occupies on its disk.
func allocated(path string) (int64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Blocks * 512, nil // the unit is the same on each file system
}

func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// sameFile returns true if two paths are names of one file, and false if one does not exist.
func sameFile(a, b string) (bool, error) {
	first, err := os.Lstat(a)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	second, err := os.Lstat(b)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(first, second), err
}

// explain adds the operation, the path, the class and the remedy to an error of the file system.
func explain(do, path string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%s %s: %w: make room on its disk, and try again: %w", do, path, err, errdefs.ErrResourceExhausted)
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%s %s: %w: mount its file system for writing: %w", do, path, err, errdefs.ErrFailedPrecondition)
	case errors.Is(err, syscall.EIO):
		return fmt.Errorf("%s %s: %w: try again when the disk is healthy: %w", do, path, err, errdefs.ErrUnavailable)
	}
	return fmt.Errorf("%s %s: %w", do, path, err)
}

// requireRoom fails with errdefs.ErrResourceExhausted if the file system of a directory has fewer
// free bytes.
func requireRoom(dir string, bytes int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if free := int64(st.Bavail) * st.Bsize; free < bytes {
		return fmt.Errorf("the disk of %s has %d bytes free, and %d are needed: make room: %w", dir, free, bytes,
			errdefs.ErrResourceExhausted)
	}
	return nil
}
