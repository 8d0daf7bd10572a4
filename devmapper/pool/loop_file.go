package pool

import (
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// statBlockBytes is the unit of st_blocks (stat(3type)).
const statBlockBytes = 512

// backingFile is the file below one of the pool's loop devices.
type backingFile struct {
	path string
	// noSpaceReason is why a write to the file may find no space, or "".
	noSpaceReason string
	// allocated is true if the file has no holes and nothing makes any.
	allocated atomic.Bool
	// missing is the number of bytes for which the last allocation of holes found no space.
	missing atomic.Uint64
}

// space describes a device of which used of total blocks are in use. disk is nil if there is no
// file or its disk could not be read. Small holes of a file with many extents may not be counted:
// st_blocks includes the file system's own records of such a file.
func (f *backingFile) space(used, total, blockBytes uint64, disk *disk) Space {
	s := Space{Used: used * blockBytes, Total: total * blockBytes}
	s.Available = s.Total - s.Used
	if disk == nil {
		return s
	}
	s.DiskFree, s.Disk = disk.free, disk.device
	if !f.allocated.Load() {
		s.Holes = max(s.Total-min(s.Total, disk.file), min(f.missing.Load(), s.Total))
	}
	backed := s.Available - min(s.Available, s.Holes)
	s.Available = min(s.Available, backed+s.DiskFree)
	return s
}

// disk reads the disk below the file. It returns nil if there is no file, or on an error.
func (f *backingFile) disk() *disk {
	if f.path == "" {
		return nil
	}
	found, err := statDisk(f.path)
	if err != nil {
		return nil
	}
	return &found
}

// disk is the file system below a pool's file: its total and free bytes, the file's allocated
// bytes, and its st_dev.
type disk struct{ total, free, file, device uint64 }

func statDisk(path string) (disk, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return disk{}, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	var file unix.Stat_t
	if err := unix.Stat(path, &file); err != nil {
		return disk{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return disk{
		total: fs.Blocks * uint64(fs.Bsize), free: fs.Bavail * uint64(fs.Bsize),
		file: uint64(file.Blocks) * statBlockBytes, device: file.Dev,
	}, nil
}

// reserve returns the bytes that the pool leaves free on the disk.
func (d disk) reserve() uint64 {
	return max(d.total/reserveShare, min(leastReserve, d.total/reserveOfSmallDisks))
}
