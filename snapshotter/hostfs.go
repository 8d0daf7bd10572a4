package snapshotter

import (
	"context"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
)

// HostFilesystem is the Filesystem of the host, with its mkfs.
type HostFilesystem struct{}

var _ Filesystem = HostFilesystem{}

// Make implements Filesystem.
func (HostFilesystem) Make(ctx context.Context, dev, typ string, options []string) error {
	if err := filesystem.Make(ctx, dev, typ, options); err != nil {
		return err
	}
	// gofail: var afterMkfs struct{}
	return filesystem.InitRoot(dev, typ)
}

// Identify implements Filesystem.
func (HostFilesystem) Identify(dev string) (filesystem.Superblock, error) {
	return filesystem.Identify(dev)
}

// Grow implements Filesystem.
func (HostFilesystem) Grow(dev, typ string, bytes uint64) error {
	return filesystem.Grow(dev, typ, bytes)
}

// Recover implements Filesystem.
func (HostFilesystem) Recover(dev, typ string) error { return filesystem.Recover(dev, typ) }

// Mounted implements Filesystem.
func (HostFilesystem) Mounted(dev, typ string) bool { return filesystem.Mounted(dev, typ) }

// Trim implements Filesystem.
func (HostFilesystem) Trim(dev, typ string, start, length uint64) (uint64, error) {
	return filesystem.Trim(dev, typ, start, length)
}

// Share implements Filesystem.
func (HostFilesystem) Share(dev, typ, dir string) error { return filesystem.Share(dev, typ, dir) }

// Unshare implements Filesystem.
func (HostFilesystem) Unshare(dir string) error { return filesystem.Unshare(dir) }
