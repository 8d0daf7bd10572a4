// Package filesystem makes, identifies, grows, trims and mounts the file system on a block device.
// The only program that it runs is the distribution's mkfs. Otherwise it reads the superblock, and
// uses ioctls on a detached mount, which no other process sees and which a crash ends.
package filesystem

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/thinsnap/thinsnap/devmapper/program"
)

// OnError is the option with which every ext4 is mounted. Otherwise the superblock, which a virtual
// machine may have written, would decide what the host does on an error.
const OnError = "errors=remount-ro"

// NoLazyInit is the option with which clients mount an ext4 for writing. Without it, the kernel
// would write the inode tables of a grown file system (ext4lazyinit), 64 GiB per TiB; unmapped
// blocks of a thin device already read as zeroes. Grow does not use the option: with it, the kernel
// writes the tables while it resizes (setup_new_flex_group_blocks in fs/ext4/resize.c).
const NoLazyInit = "noinit_itable"

// The supported file systems, as in mount(2).
const (
	Ext4 = "ext4"
	XFS  = "xfs"
)

// The smallest useful sizes in bytes: ext4 needs room for its journal, and xfsprogs since 5.19
// refuses less than 300 MB.
const (
	MinExt4 = 16 << 20
	MinXFS  = 300 << 20
)

var (
	// ErrUnsupported is returned for a type other than ext4 and xfs.
	ErrUnsupported = errors.New("unsupported file system")
	// ErrNotRecognised is returned for a device without the superblock of a
	// supported file system.
	ErrNotRecognised = errors.New("no ext4 or xfs file system found")
	// ErrUnsafe is returned for a file system whose mount would reach beyond its device, or may take
	// hours. Only a virtual machine makes such a file system.
	ErrUnsafe = errors.New("the host does not mount such a file system")
	// ErrNeedsRecovery is returned by Verify for a file system whose journal or log
	// must be replayed first.
	ErrNeedsRecovery = errors.New("the journal or log of the file system must be replayed")
)

// bytesPerInode gives an ext4 an inode per block of 4 KiB, so small files do not use up the inodes
// before the blocks. The inode tables take 6.3 % of the file system's size, instead of 1.6 % with
// mke2fs's default, but no more blocks of the pool.
const bytesPerInode = "4096"

// MkfsOptions returns the options for Make from the configured ones. It puts bytesPerInode first,
// unless the configured options choose the number of inodes. An xfs makes inodes as needed.
func MkfsOptions(typ string, configured []string) []string {
	choice := func(option string) bool {
		return strings.HasPrefix(option, "-i") || strings.HasPrefix(option, "-N") || strings.HasPrefix(option, "-T")
	}
	if typ != Ext4 || slices.ContainsFunc(configured, choice) {
		return slices.Clone(configured)
	}
	return append([]string{"-i", bytesPerInode}, configured...)
}

// Make makes a file system of type typ on dev, which must read as zeroes: mkfs relies on that, and
// writes almost nothing. The options follow our own on mkfs's command line; of several -E (or -m)
// the last one counts.
func Make(ctx context.Context, dev, typ string, options []string) error {
	switch typ {
	case Ext4:
		out, err := mkfsExt4(ctx, dev, "nodiscard,assume_storage_prezeroed=1", options)
		if err != nil && strings.Contains(out, "assume_storage_prezeroed") {
			// e2fsprogs before 1.47 does not know the option.
			_, err = mkfsExt4(ctx, dev, "nodiscard,lazy_itable_init=0,lazy_journal_init=0", options)
		}
		return err
	case XFS:
		_, err := mkfs(ctx, dev, append([]string{"mkfs.xfs", "-q", "-f", "-K"}, options...))
		return err
	default:
		return fmt.Errorf("make %q on %s: %w", typ, dev, ErrUnsupported)
	}
}

// mkfsExt4 reserves no blocks for root: all files of a container may be root's.
func mkfsExt4(ctx context.Context, dev, extended string, options []string) (string, error) {
	return mkfs(ctx, dev, append([]string{"mkfs.ext4", "-q", "-F", "-m", "0", "-E", extended}, options...))
}

func mkfs(ctx context.Context, dev string, args []string) (string, error) {
	out, err := program.Run(ctx, program.Command{Args: append(slices.Clone(args), dev)})
	said := string(out.Out) + out.Err
	switch {
	case errors.Is(err, program.ErrNotFound):
		return "", fmt.Errorf("%w (ext4 needs the package e2fsprogs, xfs needs xfsprogs)", err)
	case err != nil && len(out.Out) > 0:
		return said, fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out.Out)))
	}
	return said, err
}
