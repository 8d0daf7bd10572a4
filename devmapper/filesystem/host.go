package filesystem

import "context"

// Host makes, grows and mounts file systems with the host's kernel and mkfs programs. It is what a
// snapshotter uses outside of tests.
type Host struct{}

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
func (Host) Sync(dev, typ string) error { return Sync(dev, typ) }

// Inodes is [Inodes].
func (Host) Inodes(dev, typ string) (uint64, error) { return Inodes(dev, typ) }

// Mounted is [Mounted].
func (Host) Mounted(dev, typ string) bool { return Mounted(dev, typ) }

// Trim is [Trim].
func (Host) Trim(dev, typ string, start, length uint64) (uint64, error) {
	return Trim(dev, typ, start, length)
}

// Mount is [Mount].
func (Host) Mount(dev, typ, dir string) error { return Mount(dev, typ, dir) }

// Unmount is [Unmount].
func (Host) Unmount(dir string) error { return Unmount(dir) }
