package daemon

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/provision"
	"github.com/thinsnap/thinsnap/metadata"
)

// takeOut removes the pool of a stopped root from the kernel.
func takeOut(t *testing.T, c config.Config) {
	t.Helper()
	require.NoError(t, withPool(t.Context(), c, func(*Daemon, provision.Stored) error { return nil }))
}

func requireFiles(t *testing.T, d *Daemon, root string) {
	t.Helper()
	backing, err := d.pool.Backing()
	require.NoError(t, err)
	require.Equal(t, []string{filepath.Join(root, "pool/data"), filepath.Join(root, "pool/metadata")},
		[]string{backing.DataFile, backing.MetadataFile})
}

// recordAsVersion1 stores the pool's record as earlier versions did.
func recordAsVersion1(t *testing.T, d *Daemon) {
	t.Helper()
	root := d.config.Root
	require.NoError(t, d.store.Update(t.Context(), func(tx *metadata.Tx) error {
		rec, err := tx.Pool()
		require.Equal(t, "pool/data", rec.Loop.DataFile)
		rec.Loop.DataFile, rec.Loop.MetadataFile = filepath.Join(root, "pool/data"), filepath.Join(root, "pool/metadata")
		require.NoError(t, err)
		return tx.SetPool(rec)
	}))
}

// TestMovedRoot moves the root within its file system, with the pool loaded and without, and to
// another file system.
func TestMovedRoot(t *testing.T) {
	d, c := newDaemon(t)
	ctx := t.Context()
	layers(t, d, "one")
	recordAsVersion1(t, d)
	require.NoError(t, d.Close())
	first, moved := c.Root, c
	moved.Root = filepath.Join(t.TempDir(), "moved")
	defer func() { require.NoError(t, os.Rename(moved.Root, first)) }()
	require.NoError(t, os.Rename(first, moved.Root))
	for range 2 {
		d, err := Open(ctx, moved)
		require.NoError(t, err)
		requireFiles(t, d, moved.Root)
		requireLayers(t, d, "one", "one")
		require.NoError(t, d.Close())
		takeOut(t, moved)
	}

	// Another disk.
	disk := t.TempDir()
	require.NoError(t, unix.Mount("none", disk, "tmpfs", 0, ""))
	defer func() { require.NoError(t, unix.Unmount(disk, 0)) }()
	other := c
	other.Root = filepath.Join(disk, "root")
	run(t, "cp", "-a", moved.Root, other.Root)
	d, err := Open(ctx, other)
	require.NoError(t, err)
	requireFiles(t, d, other.Root)
	requireLayers(t, d, "one", "one")
	require.NoError(t, d.Close())
	destroy(t, other)
}

// TestMovedWithThePoolInTheKernel: data that the pool has written since the move is in the deleted
// files only. The procedure of docs/operations.md saves it.
func TestMovedWithThePoolInTheKernel(t *testing.T) {
	d, c := newDaemon(t)
	ctx := t.Context()
	files := filepath.Join(c.Root, "pool")
	run(t, "cp", "-a", files, files+".copy")
	layers(t, d, "one")
	backing, err := d.pool.Backing()
	require.NoError(t, err)
	require.NoError(t, d.Close())
	require.NoError(t, os.RemoveAll(files))
	require.NoError(t, os.Rename(files+".copy", files))
	for name, err := range map[string]error{
		"serve":  func() error { _, err := Open(ctx, c); return err }(),
		"check":  func() error { _, err := CheckPool(ctx, c); return err }(),
		"remove": DestroyPool(ctx, c),
	} {
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition, name)
		require.ErrorContains(t, err, "(deleted)", name)
		require.ErrorContains(t, err, "moved to another file system", name)
	}
	require.FileExists(t, filepath.Join(files, "data"))

	run(t, "dmsetup", "suspend", c.Pool.Name)
	run(t, "dd", "if="+backing.MetadataPath, "of="+filepath.Join(files, "metadata"), "bs=1M", "conv=fsync")
	run(t, "dd", "if="+backing.DataPath, "of="+filepath.Join(files, "data"), "bs=1M", "conv=fsync,sparse")
	run(t, "dmsetup", "resume", c.Pool.Name)
	removeAll(t, c.Pool.Name)
	d, err = Open(ctx, c)
	require.NoError(t, err)
	requireLayers(t, d, "one", "one")
	kinds, _ := findings(t, d, false)
	require.Empty(t, kinds)
	require.NoError(t, d.Close())
}

// TestCopiedRoot: a copy of a root never uses, checks or removes the files of the original.
func TestCopiedRoot(t *testing.T) {
	d, c := newDaemon(t)
	ctx := t.Context()
	layers(t, d, "one")
	recordAsVersion1(t, d)
	require.NoError(t, d.Close())
	copied := c
	copied.Root = filepath.Join(t.TempDir(), "copy")
	run(t, "cp", "-a", c.Root, copied.Root)

	// The original's pool is loaded.
	refused := func(err error) {
		t.Helper()
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		require.ErrorContains(t, err, c.Root)
	}
	_, err := Open(ctx, copied)
	refused(err)
	refused(DestroyPool(ctx, copied))
	_, err = CheckPool(ctx, copied)
	refused(err)
	require.FileExists(t, filepath.Join(c.Root, "pool/data"))

	takeOut(t, c)
	d, err = Open(ctx, copied)
	require.NoError(t, err)
	requireFiles(t, d, copied.Root)
	layers(t, d, "two")
	_, err = Open(ctx, c)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.NoError(t, d.Close())
	destroy(t, copied)
	d, err = Open(ctx, c)
	require.NoError(t, err)
	requireFiles(t, d, c.Root)
	requireLayers(t, d, "one", "one")
	require.NoError(t, d.Close())
}

// requireOneDaemon opens a root and a copy of it. Both have the same pool.
func requireOneDaemon(t *testing.T, c config.Config) {
	t.Helper()
	ctx := t.Context()
	d, err := Open(ctx, c)
	require.NoError(t, err)
	layers(t, d, "one")
	require.NoError(t, d.Close())
	copied := c
	copied.Root = filepath.Join(t.TempDir(), "copy")
	run(t, "cp", "-a", c.Root, copied.Root)
	d, err = Open(ctx, c)
	require.NoError(t, err)
	for name, err := range map[string]error{
		"serve":  func() error { _, err := Open(ctx, copied); return err }(),
		"check":  func() error { _, err := CheckRoot(ctx, copied, true); return err }(),
		"remove": DestroyPool(ctx, copied),
	} {
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition, name)
		require.ErrorContains(t, err, "in use by another thinsnap", name)
		require.ErrorIs(t, err, devmapper.ErrLocked, name)
	}
	requireLayers(t, d, "one", "one")
	require.NoError(t, d.Close())
}

func TestTwoRootsOfOneDisk(t *testing.T) {
	c := onDisk(t)
	requireOneDaemon(t, c)
	destroy(t, c)
}

func TestTwoRootsOfOneForeignPool(t *testing.T) {
	for _, uuid := range []string{"", "a-uuid"} {
		h := newHandmade(t, uuid)
		c := inPool(t, h.name)
		requireOneDaemon(t, c)
		destroy(t, c)
		h.down(t)
	}
}
