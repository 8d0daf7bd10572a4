package snapshotter_test

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/metadata"
)

// holders keep a snapshot's device open, and return the function that releases it.
var holders = map[string]func(t *testing.T, mounts []mount.Mount) (release func() error){
	"mounted": func(t *testing.T, mounts []mount.Mount) func() error {
		dir := t.TempDir()
		require.NoError(t, mount.All(mounts, dir))
		return func() error { return mount.UnmountAll(dir, 0) }
	},
	"opened": func(t *testing.T, mounts []mount.Mount) func() error {
		f, err := os.OpenFile(mounts[0].Source, os.O_RDWR, 0)
		require.NoError(t, err)
		return f.Close
	},
}

func (h *host) trash(t *testing.T) (n int) {
	t.Helper()
	require.NoError(t, h.store.View(t.Context(), func(tx *metadata.Tx) (err error) {
		n, err = tx.TrashCount()
		return err
	}))
	return n
}

// A snapshot with an open device is removed at once. Its volume is deleted after the close, also across a
// restart, and does not block anything until then.
func TestRemoveOfWhatIsHeld(t *testing.T) {
	config := filesystems["ext4"]
	for name, hold := range holders {
		for _, restart := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s,restart=%v", name, restart), func(t *testing.T) {
				ctx, h := newTestHost(t, config)
				mounts, err := h.Prepare(ctx, "held", "")
				require.NoError(t, err)
				release := hold(t, mounts)
				require.NoError(t, h.Remove(ctx, "held"))
				require.NoError(t, h.Cleanup(ctx), "Cleanup does not wait for it")
				require.Equal(t, 1, h.trash(t))

				again, err := h.Prepare(ctx, "held", "")
				require.NoError(t, err, "the key is free")
				require.NotEqual(t, mounts[0].Source, again[0].Source)
				require.NoError(t, prepareAndCommit(t, h, "other", ""))
				require.NoError(t, h.Remove(ctx, "other"))
				require.NoError(t, h.Remove(ctx, "held"))
				require.NoError(t, h.Cleanup(ctx))
				require.Equal(t, 1, h.trash(t), "other volumes are deleted")
				if restart {
					require.NoError(t, h.Close())
					require.NoError(t, h.open(ctx, config))
					require.NoError(t, h.Cleanup(ctx))
					require.Equal(t, 1, h.trash(t))
				}
				require.NoError(t, release())
				require.Eventually(t, func() bool { return h.trash(t) == 0 }, 40*time.Second, 50*time.Millisecond)
				require.NoFileExists(t, mounts[0].Source)
			})
		}
	}
}

// The layer committed from an open device is a copy, without later writes to the device.
// TestCommitWhileMounted does the same with a mounted file system.
func TestCommitOfWhatIsOpened(t *testing.T) {
	ctx, h := newTestHost(t, filesystems["ext4"])
	mounts, err := h.Prepare(ctx, "held", "")
	require.NoError(t, err)
	dev, disk := mounts[0].Source, rawDisk{}
	release := holders["opened"](t, mounts)
	require.NoError(t, disk.Write(dev, "at the commit"))
	require.NoError(t, h.Commit(ctx, "layer", "held"))
	require.NoError(t, disk.Write(dev, "after the commit"))

	for _, held := range []bool{true, false} {
		if !held {
			require.NoError(t, release())
			require.Eventually(t, func() bool { return h.trash(t) == 0 }, 40*time.Second, 50*time.Millisecond)
			require.NoFileExists(t, dev)
		}
		child, err := h.Prepare(ctx, "child", "layer")
		require.NoError(t, err)
		content, err := disk.Read(child[0].Source)
		require.NoError(t, err)
		require.Equal(t, "at the commit", content)
		require.NoError(t, h.Remove(ctx, "child"))
		require.NoError(t, h.Cleanup(ctx))
	}
}
