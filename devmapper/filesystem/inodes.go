package filesystem

import (
	"os"

	"golang.org/x/sys/unix"
)

// Inodes returns the number of inodes in use of the file system on dev, reserved ones
// included. The superblock has it while the file system is not mounted, and lags
// behind while a virtual machine has it mounted. While the host has it mounted, the
// kernel's own counters tell (statfs(2)).
func Inodes(dev, typ string) (uint64, error) {
	if Mounted(dev, typ) {
		var st unix.Statfs_t
		err := onMount(dev, typ, func(root *os.File) error { return unix.Fstatfs(int(root.Fd()), &st) })
		if err == nil {
			return st.Files - min(st.Ffree, st.Files), nil
		}
		// It is mounted read-only, or with options that allow no other mount.
	}
	sb, err := Identify(dev)
	return sb.Inodes, err
}
