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

// newMode is that of created files.
const newMode = 0o644

// labelName is SELinux's attribute of a file.
const labelName = "security.selinux"

// Replace gives a file other contents, without a record. Its directory is created if it is missing. Errors are those of
// the operating system.
func Replace(path string, text []byte, mode fs.FileMode) error {
	if _, err := makeDirs(filepath.Dir(path)); err != nil {
		return err
	}
	return replace(path, text, mode)
}

// replace gives a file other contents, atomically and durably. Mode, owner and SELinux label stay; a file
// that is created gets the mode, 0644 if it is 0, and others keep no more than it.
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

// temporary returns the pattern of the names that a file's new contents have before they take its place.
// They match no pattern for files of configuration, such as *.toml.
func temporary(path string) string { return "." + filepath.Base(path) + ".thinsnap-*" }

// likeBefore gives a new file the owner and the SELinux label of the one that it replaces.
func likeBefore(f *os.File, path string, info fs.FileInfo) error {
	if st, ok := info.Sys().(*syscall.Stat_t); ok && (int(st.Uid) != os.Geteuid() || int(st.Gid) != os.Getegid()) {
		if err := f.Chown(int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
	}
	label := make([]byte, 1024)
	n, err := unix.Getxattr(path, labelName, label)
	if err != nil {
		// Without SELinux there is no such attribute.
		return nil //nolint:nilerr // see above
	}
	err = unix.Fsetxattr(int(f.Fd()), labelName, label[:n], 0)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	return err
}

// remove removes a file durably.
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

// read returns nil for a file that is missing.
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

// makeDirs creates a directory, and returns those that were missing, the deepest last.
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
	for _, at := range missing {
		if err := os.Mkdir(at, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		if err := syncDir(filepath.Dir(at)); err != nil {
			return nil, err
		}
	}
	return missing, nil
}
