package daemon

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/admin"
)

// TestWhatSnapshotsTake: a list and an inspection agree, and a removal frees the exclusive bytes.
func TestWhatSnapshotsTake(t *testing.T) {
	d, _ := newDaemon(t)
	defer func() { require.NoError(t, d.Close()) }()
	ctx := t.Context()
	layers(t, d, "one", "two")
	_, err := d.snapshotter.View(ctx, "look", "two")
	require.NoError(t, err)
	mounts, err := d.snapshotter.Prepare(ctx, "box", "two")
	require.NoError(t, err)
	// Overwrite a file of the layer.
	require.NoError(t, mount.WithTempMount(ctx, mounts, func(dir string) error {
		f, err := os.OpenFile(filepath.Join(dir, "two"), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.Write(make([]byte, 1<<20))
		return err
	}))
	all := map[string]admin.Snapshot{}
	inspect := func(key string) admin.Inspection {
		i, err := d.Inspect(ctx, key)
		require.NoError(t, err)
		return i
	}
	// Spares come and go, and the list does not measure them each time.
	require.Eventually(t, func() bool {
		list, err := d.Snapshots(ctx, false)
		require.NoError(t, err)
		same := true
		for _, s := range list {
			all[s.Key] = s
			same = same && s.Exclusive != nil && *s.Exclusive == *inspect(s.Key).Exclusive
		}
		return same && *all["two"].Exclusive >= 1<<20
	}, time.Minute, 10*time.Millisecond)
	for key, s := range all {
		i := inspect(key)
		require.Equal(t, *s.Used, *i.Used, key)
		require.Equal(t, *s.Shared, *i.Shared, key)
		require.Equal(t, *s.Used+*s.Shared, *i.MappedBytes, key)
		usage, err := d.snapshotter.Usage(ctx, key)
		require.NoError(t, err)
		require.EqualValues(t, usage.Size, *s.Used, key)
	}
	require.GreaterOrEqual(t, *all["box"].Used, uint64(1<<20), "overwritten blocks count")
	require.Equal(t, *all["box"].Used, *all["box"].Exclusive)
	require.Zero(t, *all["look"].Used+*all["look"].Exclusive)
	require.Less(t, *all["one"].Exclusive, uint64(1<<20), "the child shares most of it")

	// Nothing was written since: a removal frees exactly the exclusive bytes.
	require.NoError(t, d.snapshotter.Remove(ctx, "look"))
	commit := func() uint64 {
		require.NoError(t, d.snapshotter.Cleanup(ctx))
		require.NoError(t, d.pool.Commit(ctx))
		status, err := d.pool.Status(ctx)
		require.NoError(t, err)
		return status.Data.Used
	}
	before := commit()
	require.NoError(t, d.snapshotter.Remove(context.WithoutCancel(ctx), "box"))
	require.Eventually(t, func() bool { return before-commit() == *all["box"].Exclusive }, time.Minute, 50*time.Millisecond)
}
