package filesystem

import (
	"os"

	"golang.org/x/sys/unix"
)

// Inodes returns the number of inodes in use of the file system on dev, including reserved ones.
// While the host has it mounted, the kernel counts them (statfs(2)). Otherwise the superblock has
// the number, which lags behind while a virtual machine has it mounted.
func Inodes(dev, typ string) (uint64, error) {
	if Mounted(dev, typ) {
		var st unix.Statfs_t
		err := withMount(dev, typ, func(root *os.File) error { return unix.Fstatfs(int(root.Fd()), &st) })
		if err == nil {
			return st.Files - min(st.Ffree, st.Files), nil
		}
		// It is mounted read-only, or with options that permit no other mount.
	}
	sb, err := Identify(dev)
	return sb.Inodes, err
}
