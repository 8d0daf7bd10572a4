package fshistory

import (
	"encoding/binary"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// wholeTimes sets the times of everything below a directory to whole seconds, like unpacking an
// image.
const wholeTimes = "whole times"

func attributeOperations() []operation {
	all := []kind{dir, file, link, other, crowd}
	return []operation{
		{name: "chmod", weight: 4, choose: change(dir, file, other, crowd), apply: (*Run).chmod},
		{name: "chown", weight: 4, choose: change(all...), apply: (*Run).chown},
		{name: "touch", weight: 4, choose: change(all...), apply: (*Run).touch},
		{name: "set times", weight: 4, image: 1, choose: change(all...), apply: (*Run).setTimes},
		{name: "set xattr", weight: 6, image: 1, choose: change(dir, file, crowd), apply: (*Run).setXattr},
		{name: "set xattr, keep times", weight: 2, choose: change(dir, file), apply: (*Run).setXattrQuietly},
		{name: "remove xattr", weight: 4, choose: change(dir, file, crowd), apply: (*Run).removeXattr},
		{name: "share xattrs", weight: 3, image: 1, choose: chooseShare, apply: (*Run).shareXattrs},
		{name: "set acl", weight: 2, image: 1, choose: change(dir, file), apply: (*Run).setACL},
		{name: "set capability", weight: 4, image: 1, choose: chooseCapable, apply: (*Run).setCapability},
		{name: "set capability, keep times", weight: 2, choose: chooseCapable, apply: (*Run).setCapabilityQuietly},
		{name: "remove capability", weight: 2, choose: chooseIncapable, apply: (*Run).removeCapability},
		{name: "set flag", weight: 2, choose: change(dir, file), apply: (*Run).setFlag},
	}
}

func (r *Run) chmod(o Op) error { return unix.Chmod(r.path(o.Path), uint32(o.Value)&0o7777) }

func (r *Run) chown(o Op) error {
	ids := []int{0, 1, 1000, 65536, 1 << 31}
	return unix.Lchown(r.path(o.Path), ids[o.Value%5], ids[o.Value>>8%5])
}

func (r *Run) setTime(p string, t unix.Timespec) error {
	return unix.UtimesNanoAt(unix.AT_FDCWD, r.path(p), []unix.Timespec{t, t}, unix.AT_SYMLINK_NOFOLLOW)
}

func (r *Run) touch(o Op) error { return r.setTime(o.Path, unix.Timespec{Nsec: unix.UTIME_NOW}) }

// someTime returns one of few times. Half of them are whole seconds.
func someTime(value uint64) unix.Timespec {
	t := unix.Timespec{Sec: 1_700_000_000 + int64(value%3)}
	if value>>8%2 == 0 {
		t.Nsec = 1 + int64(value>>16%2)
	}
	if value>>32%16 == 0 {
		t.Sec = -t.Sec / 2
	}
	return t
}

func (r *Run) setTimes(o Op) error { return r.setTime(o.Path, someTime(o.Value)) }

func (r *Run) wholeTimes(o Op) error {
	root := r.path(o.Path)
	return filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		below, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		t := unix.Timespec{Sec: 1_600_000_000 + int64((o.Value+uint64(len(below)))%5)}
		return r.setTime(filepath.Join(o.Path, below), t)
	})
}

func attributeNames() []string {
	return []string{"user.a", "user.longer", "trusted.b", "security.other"}
}

func attributeName(value uint64) string {
	names := attributeNames()
	return names[value>>8%uint64(len(names))]
}

// setXattr sets values of various sizes: few fit into the inode, and some fit into no block.
func (r *Run) setXattr(o Op) error {
	lengths := []int64{1, 20, 90, 300, 1000, 3000, 6000}
	value := content(o.Value, lengths[o.Value%uint64(len(lengths))])
	return unix.Lsetxattr(r.path(o.Path), attributeName(o.Value), value, 0)
}

func (r *Run) setXattrQuietly(o Op) error {
	return r.keepingTimes(o.Path, func() error { return r.setXattr(o) })
}

func (r *Run) removeXattr(o Op) error {
	for _, name := range slices.Concat(attributeNames()[o.Value%2:], []string{"system.posix_acl_access"}) {
		if err := unix.Lremovexattr(r.path(o.Path), name); err != nil && err != unix.ENODATA {
			return err
		}
	}
	return nil
}

func chooseShare(g *Generator) (Op, bool) {
	p, ok := g.pick(file, dir)
	to, _ := g.pick(file, dir)
	return Op{Path: p, To: to, Value: 1 + g.rand.Uint64N(3)}, ok
}

// shareXattrs gives two files the same attributes, for which ext4 uses one block, from few values.
func (r *Run) shareXattrs(o Op) error {
	for _, p := range []string{o.Path, o.To} {
		for _, name := range attributeNames()[:2] {
			if err := unix.Lsetxattr(r.path(p), name, content(o.Value, 400), 0); err != nil {
				return err
			}
		}
	}
	return nil
}

// setACL gives rights to a user and a group, also by default on a directory
// (linux/posix_acl_xattr.h).
func (r *Run) setACL(o Op) error {
	entry := func(tag, perm uint16, id uint32) []byte {
		b := binary.LittleEndian.AppendUint16(nil, tag)
		b = binary.LittleEndian.AppendUint16(b, perm)
		return binary.LittleEndian.AppendUint32(b, id)
	}
	const none = 1<<32 - 1
	acl := slices.Concat([]byte{2, 0, 0, 0}, entry(0x01, 6, none), entry(0x02, uint16(o.Value%8), 1000),
		entry(0x04, 4, none), entry(0x08, 5, uint32(o.Value>>8%3)), entry(0x10, 7, none), entry(0x20, 4, none))
	if info, err := os.Lstat(r.path(o.Path)); err == nil && info.IsDir() && o.At%2 == 0 {
		return unix.Lsetxattr(r.path(o.Path), "system.posix_acl_default", acl, 0)
	}
	return unix.Lsetxattr(r.path(o.Path), "system.posix_acl_access", acl, 0)
}

func chooseCapable(g *Generator) (Op, bool) {
	p, ok := g.pick(file)
	if ok {
		g.capable = append(g.capable, p)
	}
	return g.values(Op{Path: p}), ok
}

// chooseIncapable chooses a file that had a capability.
func chooseIncapable(g *Generator) (Op, bool) {
	if len(g.capable) == 0 {
		return Op{}, false
	}
	return Op{Path: g.capable[g.rand.IntN(len(g.capable))]}, true
}

// setCapability sets a value of version 2 (linux/capability.h, struct vfs_cap_data).
func (r *Run) setCapability(o Op) error {
	value := binary.LittleEndian.AppendUint32(nil, 0x02000000|uint32(o.Value%2))
	for i := range 4 {
		value = binary.LittleEndian.AppendUint32(value, uint32(o.Value>>(8+4*i)%16))
	}
	return unix.Lsetxattr(r.path(o.Path), "security.capability", value, 0)
}

func (r *Run) setCapabilityQuietly(o Op) error {
	return r.keepingTimes(o.Path, func() error { return r.setCapability(o) })
}

func (r *Run) removeCapability(o Op) error {
	return unix.Lremovexattr(r.path(o.Path), "security.capability")
}

// setFlag toggles "no dump", which changes only the inode (linux/fs.h, FS_NODUMP_FL).
func (r *Run) setFlag(o Op) error {
	const noDump = 0x40
	return r.onFile(o.Path, os.O_RDONLY, func(f *os.File, _ int64) error {
		flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
		if err != nil {
			return err
		}
		return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags^noDump)
	})
}
