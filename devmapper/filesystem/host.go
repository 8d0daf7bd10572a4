package filesystem

import "context"

// Host makes, grows and mounts file systems with the host's kernel and mkfs programs. Tests use
// another implementation.
type Host struct {
	// MountOptions are among the options of each mount by a client (filesystem.mount_options).
	MountOptions []string
}

// Make makes a file system with an empty root directory. See [Make] and [InitRoot].
func (Host) Make(ctx context.Context, dev, typ string, options []string) error {
	if err := Make(ctx, dev, typ, options); err != nil {
		return err
	}
	// gofail: var afterMkfs struct{}
	return InitRoot(dev, typ)
}

// Identify is [Identify].
func (Host) Identify(dev string) (Superblock, error) { return Identify(dev) }

// Grow is [Grow].
func (Host) Grow(dev, typ string, bytes uint64) error { return Grow(dev, typ, bytes) }

// Recover is [Recover].
func (Host) Recover(dev, typ string) error { return Recover(dev, typ) }

// Verify is [Verify].
func (Host) Verify(dev, typ string) error { return Verify(dev, typ) }

// Sync is [Sync].
func (h Host) Sync(dev, typ string) error { return Sync(dev, typ, h.MountOptions...) }

// Inodes is [Inodes].
func (Host) Inodes(dev, typ string) (uint64, error) { return Inodes(dev, typ) }

// Mounted is [Mounted].
func (Host) Mounted(dev, typ string) bool { return Mounted(dev, typ) }

// Trim is [Trim].
func (h Host) Trim(dev, typ string, start, length uint64) (uint64, error) {
	return Trim(dev, typ, start, length, h.MountOptions...)
}

// Mount is [Mount].
func (Host) Mount(dev, typ, dir string, options []string) (string, error) {
	return Mount(dev, typ, dir, options)
}

// Unmount is [Unmount].
func (Host) Unmount(dir string) error { return Unmount(dir) }
