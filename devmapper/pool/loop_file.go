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
// unless the file is known to be whole. disk is nil if there is no file, or it cannot be looked up.
func (f *backingFile) space(used, total, blockBytes uint64, disk *disk) Space {
	s := Space{Used: used * blockBytes, Total: total * blockBytes}
	s.Available = s.Total - s.Used
	if disk == nil {
		return s
	}
	s.DiskFree, s.Disk = disk.free, disk.device
	if !f.whole.Load() {
		s.Holes = max(s.Total-min(s.Total, disk.file), min(f.missing.Load(), s.Total))
	}
	backed := s.Available - min(s.Available, s.Holes)
	s.Available = min(s.Available, backed+s.DiskFree)
	return s
}

// disk looks up the disk below the file; nil if there is no file, or that fails.
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

// disk is the file system below a pool's file: its sizes in bytes, what the file has of it, and its st_dev.
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

// reserve is what the pool leaves free on the disk.
func (d disk) reserve() uint64 {
	return max(d.total/reserveShare, min(leastReserve, d.total/reserveOfSmallDisks))
}
