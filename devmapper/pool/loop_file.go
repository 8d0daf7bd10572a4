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
	// notAllocated is why what is allocated of the file may not be on the disk, or "".
	notAllocated string
	// whole says that the file has no hole, and that nothing makes one.
	whole atomic.Bool
	// missing is the number of bytes for which the disk had no space when the holes were last
	// allocated.
	missing atomic.Uint64
}

// space describes a device of the given blocks, of which the file has some on its disk. st_blocks
// also counts the file system's own records of a file with many extents, so it hides small holes
// unless the file is known to be whole.
func (f *backingFile) space(used, total, blockBytes uint64) Space {
	s := Space{Used: used * blockBytes, Total: total * blockBytes}
	s.Available = s.Total - s.Used
	if f.path == "" {
		return s
	}
	disk, err := statDisk(f.path)
	if err != nil {
		return s
	}
	s.DiskFree, s.Disk = disk.free, disk.device
	if !f.whole.Load() {
		s.Holes = max(s.Total-min(s.Total, fileBytes(f.path)), min(f.missing.Load(), s.Total))
	}
	backed := s.Available - min(s.Available, s.Holes)
	s.Available = min(s.Available, backed+s.DiskFree)
	return s
}

// disk is the file system below a pool's file: its sizes in bytes, and its st_dev.
type disk struct{ total, free, device uint64 }

func statDisk(path string) (disk, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return disk{}, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	var file unix.Stat_t
	if err := unix.Stat(path, &file); err != nil {
		return disk{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return disk{fs.Blocks * uint64(fs.Bsize), fs.Bavail * uint64(fs.Bsize), file.Dev}, nil
}

// reserve is what the pool leaves free on the disk.
func (d disk) reserve() uint64 {
	return max(d.total/reserveShare, min(leastReserve, d.total/reserveOfSmallDisks))
}
