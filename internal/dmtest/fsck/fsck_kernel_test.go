package fsck_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/dmtest/fsck"
	"github.com/thinsnap/thinsnap/internal/provision"
	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// TestDamagedLayer damages a layer in a way that a mount does not detect.
func TestDamagedLayer(t *testing.T) {
	for typ, c := range map[string]struct {
		size    uint64
		damage  []string
		problem string
	}{
		filesystem.Ext4: {64 << 20, []string{"debugfs", "-w", "-R", "clri file"}, "deleted/unused inode"},
		filesystem.XFS:  {filesystem.MinXFS, []string{"xfs_db", "-x", "-c", "agf 0", "-c", "write -d freeblks 1"}, "agf_freeblks 1, counted"},
	} {
		t.Run(typ, func(t *testing.T) {
			dmtest.RequireKernel(t)
			dmtest.NoLeaks(t)
			ctx := t.Context()
			root := filepath.Join(t.TempDir(), "root")
			require.NoError(t, os.Mkdir(root, 0o700))
			control, err := devmapper.Open()
			require.NoError(t, err)
			defer control.Close()
			store, err := metadata.Open(filepath.Join(root, "metadata.db"), metadata.Options{})
			require.NoError(t, err)
			settings := config.Default()
			settings.Root, settings.Pool.Name = root, "fsck-"+typ
			settings.Pool.Loop = config.PoolLoop{DataSize: 1 << 30, MetadataSize: 16 << 20}
			p, err := provision.Open(ctx, store, control, settings)
			require.NoError(t, err)
			defer func() { require.NoError(t, p.Close(context.WithoutCancel(ctx))) }()
			sn, err := snapshotter.New(ctx, snapshotter.Config{
				Filesystem: typ, BaseBytes: c.size, MountDir: filepath.Join(root, "mounts"),
			}, store, p, filesystem.Host{})
			require.NoError(t, err)
			for _, name := range []string{"whole", "damaged"} {
				mounts, err := sn.Prepare(ctx, "new", "")
				require.NoError(t, err)
				require.NoError(t, mount.WithTempMount(ctx, mounts, func(dir string) error {
					return os.WriteFile(filepath.Join(dir, "file"), []byte(name), 0o600)
				}))
				require.NoError(t, sn.Commit(ctx, name, "new"))
			}
			require.NoError(t, fsck.Served(ctx, sn))
			require.NoError(t, sn.Cleanup(ctx))

			rec := find(t, store, "damaged")
			damage(t, p, rec, c.damage)
			require.ErrorContains(t, fsck.Served(ctx, sn), `committed snapshot "damaged": `)
			require.NoError(t, sn.Close())
			err = fsck.Root(ctx, root)
			require.ErrorContains(t, err, `committed snapshot "damaged": `)
			require.ErrorContains(t, err, c.problem)
		})
	}
}

func find(t *testing.T, store *metadata.Store, key string) (rec metadata.Snapshot) {
	t.Helper()
	require.NoError(t, store.View(t.Context(), func(tx *metadata.Tx) (err error) {
		rec, err = tx.Get(key)
		return err
	}))
	return rec
}

func damage(t *testing.T, p *pool.Pool, rec metadata.Snapshot, command []string) {
	t.Helper()
	id := thin.ID(rec.VolumeID)
	if err := p.Deactivate(t.Context(), id); err != nil {
		require.ErrorIs(t, err, devmapper.ErrNotFound)
	}
	vol, err := p.Activate(t.Context(), id, rec.Size, false)
	require.NoError(t, err)
	out, err := exec.CommandContext(t.Context(), command[0], append(command[1:], vol.Path)...).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NoError(t, p.Flush(t.Context(), id))
	require.NoError(t, p.Deactivate(t.Context(), id))
}
