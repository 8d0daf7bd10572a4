package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/docker/go-units"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/rootdir"
)

// lookAtRoot makes the checks of a start: owners, modes and links.
func lookAtRoot(_ context.Context, m *machine) finding {
	root := m.config().Root
	if err := rootdir.Check(root); err != nil {
		return problem(err.Error(), "ls -la "+quote(root), "ls -ld "+quote(filepath.Dir(root)))
	}
	info, err := os.Stat(root)
	if errors.Is(err, fs.ErrNotExist) {
		return ok("%s does not exist yet", root)
	}
	if err != nil {
		return problem(err.Error(), "ls -ld "+quote(root))
	}
	return ok("%s, mode %04o", root, info.Mode().Perm())
}

// badFilesystems has the file systems that are unsuitable for the root, with the reason.
func badFilesystems() map[int64]string {
	return map[int64]string{
		unix.TMPFS_MAGIC:           "a tmpfs: all data is gone after a reboot",
		unix.RAMFS_MAGIC:           "a ramfs: all data is gone after a reboot",
		unix.OVERLAYFS_SUPER_MAGIC: "an overlay: the file system of a container or of a live system",
		unix.NFS_SUPER_MAGIC:       "an NFS: the pool hangs when the server does",
		unix.V9FS_MAGIC:            "a 9p file system of a virtual machine's host",
	}
}

// lookAtRootFileSystem checks the file system of the root, or of its nearest existing parent.
func lookAtRootFileSystem(_ context.Context, m *machine) finding {
	dir := nearest(m.config().Root)
	var st unix.Statfs_t
	if err := m.host.statfs(dir, &st); err != nil {
		return problem(fmt.Sprintf("read the file system of %s: %v", dir, err), "df "+quote(dir))
	}
	elsewhere := "# set root in " + m.File + " to a directory on a local disk with ext4 or XFS"
	if st.Flags&unix.ST_RDONLY != 0 {
		return problem(dir+" is on a read-only file system", "mount -o remount,rw "+quote(mountOf(dir)), elsewhere)
	}
	if err := directIO(dir); err != nil {
		return problem(fmt.Sprintf("the file system of %s has no direct I/O, by which thinsnap reads the pool's metadata: %v",
			dir, err), elsewhere)
	}
	if bad := badFilesystems()[st.Type]; bad != "" {
		return warning(dir+" is on "+bad, elsewhere)
	}
	seen := fmt.Sprintf("%s has %s free of %s", dir, units.BytesSize(float64(st.Bavail*uint64(st.Bsize))),
		units.BytesSize(float64(st.Blocks*uint64(st.Bsize))))
	c := m.config()
	if c.Pool.Mode == config.ModeLoop {
		seen += fmt.Sprintf("; the pool's data grows up to %v", c.Pool.Loop.DataSize)
	}
	return ok("%s", seen)
}

// nearest returns the directory or its nearest existing parent.
func nearest(dir string) string {
	for {
		if info, err := os.Stat(dir); err == nil && info.IsDir() || dir == filepath.Dir(dir) {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// directIO opens an unnamed file, which is deleted when it is closed. It returns nil if the file
// system does not support unnamed files: another test would have to create a file.
func directIO(dir string) error {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0o600)
	switch {
	case errors.Is(err, unix.EINVAL):
		return err
	case err != nil:
		return nil //nolint:nilerr // it has no files without names, or the directory is not ours to write to
	}
	return unix.Close(fd)
}

func mountOf(dir string) string {
	mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(dir))
	if err != nil || len(mounts) == 0 {
		return dir
	}
	return nearestMount(mounts).Mountpoint
}

// nearestMount returns the innermost mount of a directory. mounts are the mounts of the directory
// and its parents; the last one on a mountpoint counts.
func nearestMount(mounts []*mountinfo.Info) *mountinfo.Info {
	nearest := mounts[0]
	for _, m := range mounts {
		if len(m.Mountpoint) >= len(nearest.Mountpoint) {
			nearest = m
		}
	}
	return nearest
}
