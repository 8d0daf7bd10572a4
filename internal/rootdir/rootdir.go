// Package rootdir has the names in the root directory, and checks whether others could have changed
// it: its contents decide which files become block devices.
package rootdir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/internal/provision"
	"github.com/thinsnap/thinsnap/internal/trustedpath"
)

// Names in the root directory, in addition to provision.RootFiles.
const (
	storeName    = "metadata.db"
	mountsName   = "mounts"
	adoptionName = "adopt"
)

// Store returns the path of the store.
func Store(root string) string { return filepath.Join(root, storeName) }

// Mounts returns the directory of the snapshotter's own mounts.
func Mounts(root string) string { return filepath.Join(root, mountsName) }

// Adoption returns the directory of the files of `thinsnap adopt`.
func Adoption(root string) string { return filepath.Join(root, adoptionName) }

// rootNames returns the relative paths of everything in the root directory, directories before
// their contents.
func rootNames() []string {
	return slices.Concat([]string{storeName, mountsName, adoptionName}, provision.RootFiles())
}

// Prepare creates the root directory. If it exists, Prepare checks that only the daemon's user can
// have changed it and that it has no symbolic links, and then removes the permissions of others.
// If a check fails, nothing is changed.
func Prepare(root string) error {
	resolved, modes, err := check(root)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(resolved, 0o700); err != nil {
		return fmt.Errorf("create the root directory: %w", err)
	}
	for _, name := range append([]string{"."}, rootNames()...) {
		if err := closeToOthers(filepath.Join(resolved, name), modes[name]); err != nil {
			return err
		}
	}
	return nil
}

// Check makes the checks of Prepare, and changes nothing.
func Check(root string) error {
	_, _, err := check(root)
	return err
}

// check returns the root without symbolic links, and the permissions of its existing parts.
//
// It returns errdefs.ErrFailedPrecondition if others can write to the root or to a directory above
// it. It also does so if a part of the root belongs to others, has a hard link elsewhere or is a
// symbolic link. A root that others can read must have only rootNames, because others may use the
// rest. The root itself may be a link.
func check(root string) (resolved string, modes map[string]fs.FileMode, err error) {
	if resolved, err = trustedpath.Resolve(root); err != nil {
		return "", nil, fmt.Errorf("check the root directory %s: %w", root, err)
	}
	info, err := os.Lstat(resolved)
	if errors.Is(err, fs.ErrNotExist) {
		return resolved, nil, nil
	}
	if err != nil {
		return "", nil, fmt.Errorf("check the root directory: %w", err)
	}
	mode := info.Mode().Perm()
	if !info.IsDir() {
		return "", nil, fmt.Errorf("the root directory %s is not a directory: %w", root, errdefs.ErrFailedPrecondition)
	}
	if owner := trustedpath.OwnerOf(info); owner != os.Geteuid() {
		return "", nil, fmt.Errorf("the root directory %s belongs to user %d, who could change its contents: "+
			"check its contents, and give it to root with `chown root`: %w", root, owner, errdefs.ErrFailedPrecondition)
	}
	if mode&0o022 != 0 {
		return "", nil, fmt.Errorf("the root directory %s has mode %04o, so others may have changed its contents: "+
			"check its contents, and close it with `chmod 0700`: %w", root, mode, errdefs.ErrFailedPrecondition)
	}
	if mode&0o077 != 0 {
		if err := checkOwnDirectory(root, resolved); err != nil {
			return "", nil, err
		}
	}
	modes = map[string]fs.FileMode{".": mode}
	for _, name := range rootNames() {
		if modes[name], err = checkPart(filepath.Join(resolved, name)); err != nil {
			return "", nil, err
		}
	}
	return resolved, modes, nil
}

// checkOwnDirectory fails if a directory has contents that are not thinsnap's: others may need
// access to them.
func checkOwnDirectory(root, resolved string) error {
	entries, err := os.ReadDir(resolved)
	if err != nil {
		return fmt.Errorf("check the root directory: %w", err)
	}
	for _, entry := range entries {
		// mkfs creates lost+found, in a file system that is mounted at the root.
		if name := entry.Name(); name != "lost+found" && !slices.Contains(rootNames(), name) {
			return fmt.Errorf("the root directory %s is open to others and has more in it than thinsnap's data (%q): "+
				"choose a directory of its own (key root), or, if it is for thinsnap alone, close it with `chmod 0700`: %w",
				root, name, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// checkPart returns the permissions of a file in the root, or 0 if it does not exist. It fails if
// others may have the file open or have another name for it.
func checkPart(path string) (fs.FileMode, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	switch owner := trustedpath.OwnerOf(info); {
	case info.Mode().Type() == fs.ModeSymlink:
		return 0, fmt.Errorf("%s is a symbolic link, which is not allowed within the root directory: "+
			"mount its target in its place (`mount --bind`), or move the whole root (key root): %w",
			path, errdefs.ErrFailedPrecondition)
	case owner != os.Geteuid():
		return 0, fmt.Errorf("%s belongs to user %d, who may have changed it and may still have it open: "+
			"check it, and put a copy that root owns in its place: %w", path, owner, errdefs.ErrFailedPrecondition)
	case info.Mode().IsRegular() && hasNameElsewhere(path, info):
		return 0, fmt.Errorf("%s has another name elsewhere, by which others may change it: "+
			"put a copy in its place, or remove the other name (find -samefile): %w", path, errdefs.ErrFailedPrecondition)
	}
	return info.Mode().Perm(), nil
}

// hasNameElsewhere reports whether a file has a hard link in another directory. A crash during the
// store's creation leaves two in the same directory.
func hasNameElsewhere(path string, info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return true
	}
	if st.Nlink == 1 {
		return false
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return true
	}
	here := 0
	for _, entry := range entries {
		if other, err := entry.Info(); err == nil && os.SameFile(info, other) {
			here++
		}
	}
	return int(st.Nlink) > here
}

// closeToOthers removes the permissions of others from a file with this mode.
func closeToOthers(path string, mode fs.FileMode) error {
	if mode&0o077 == 0 {
		return nil
	}
	log.L.WithField("path", path).Warnf("removed the permissions of others: mode %04o is now %04o", mode, mode&^0o077)
	return os.Chmod(path, mode&^0o077)
}
