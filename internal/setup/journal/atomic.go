package journal

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

const newMode = 0o644

// labelName is the extended attribute with a file's SELinux label.
const labelName = "security.selinux"

// Replace replaces the content of a file, and records nothing. It creates a missing directory.
// Errors are those of the operating system.
func Replace(path string, text []byte, mode fs.FileMode) error {
	if _, err := makeDirs(filepath.Dir(path)); err != nil {
		return err
	}
	return replace(path, text, mode)
}

// replace replaces the content of a file atomically and durably, and keeps its mode, owner and
// SELinux label. A created file gets the given mode, or 0644 if it is 0. An existing file loses the
// permissions that a mode other than 0 lacks.
func replace(path string, text []byte, mode fs.FileMode) error {
	err := replaceAt(path, text, mode)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func replaceAt(path string, text []byte, mode fs.FileMode) (err error) {
	info, err := os.Stat(path)
	exists := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, temporary(path))
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(text)
	if err == nil {
		if exists {
			mode = info.Mode().Perm() & cmp.Or(mode, fs.ModePerm)
		}
		err = f.Chmod(cmp.Or(mode, newMode))
	}
	if err == nil && exists {
		err = likeBefore(f, path, info)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// temporary returns the pattern for the name of a file's new content before the rename. The names
// match no pattern for configuration files, such as *.toml.
func temporary(path string) string { return "." + filepath.Base(path) + ".thinsnap-*" }

// likeBefore copies the owner and the SELinux label of the replaced file.
func likeBefore(f *os.File, path string, info fs.FileInfo) error {
	if st, ok := info.Sys().(*syscall.Stat_t); ok && (int(st.Uid) != os.Geteuid() || int(st.Gid) != os.Getegid()) {
		if err := f.Chown(int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
	}
	label := make([]byte, 1024)
	n, err := unix.Getxattr(path, labelName, label)
	if err != nil {
		// Without SELinux, the attribute does not exist.
		return nil //nolint:nilerr // see above
	}
	err = unix.Fsetxattr(int(f.Fd()), labelName, label[:n], 0)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	return err
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// read returns nil for a missing file.
func read(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && text == nil {
		text = []byte{}
	}
	return text, err
}

// makeDirs creates a directory, and returns the created directories, the deepest last, also with an
// error.
func makeDirs(dir string) ([]string, error) {
	var missing []string
	for at := dir; ; at = filepath.Dir(at) {
		if _, err := os.Stat(at); err == nil {
			break
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		missing = append([]string{at}, missing...)
	}
	for i, at := range missing {
		if err := os.Mkdir(at, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return missing[:i], err
		}
		if err := syncDir(filepath.Dir(at)); err != nil {
			return missing[:i+1], err
		}
	}
	return missing, nil
}
