package daemon

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/provision"
	"github.com/thinsnap/thinsnap/internal/rootdir"
)

// adoptedRoot names the variable with the configuration of TestAdoptedChild's root.
const adoptedRoot = "THINSNAP_TEST_ADOPTED_ROOT"

// TestAdoptedPoolKilled kills thinsnap at random moments while it creates and removes snapshots of
// adopted layers. No adopted or foreign volume is lost, and provision.Withdraw deletes all of
// thinsnap's own volumes.
func TestAdoptedPoolKilled(t *testing.T) {
	dmtest.RequireThorough(t)
	a := newAdopted(t)
	a.config.Pool.SparesMax = 4
	ctx := t.Context()
	for range 20 {
		child := a.startChild(t)
		time.Sleep(time.Duration(rand.IntN(1500)) * time.Millisecond)
		require.NoError(t, child.Process.Kill())
		require.Error(t, child.Wait(), "killed")

		d, err := Open(ctx, a.config)
		require.NoError(t, err)
		for _, key := range []string{"upon", "top", "new"} {
			if err := d.snapshotter.Remove(ctx, key); !errdefs.IsNotFound(err) {
				require.NoError(t, err)
			}
		}
		require.NoError(t, d.snapshotter.Cleanup(ctx))
		requireClean(t, d)
		for key, files := range map[string][]string{
			"box": {"low", "high", "box"}, "xfs box": {"xfs", "xfs box"}, "look": {"low", "high"},
		} {
			mounts, err := d.snapshotter.Mounts(ctx, key)
			require.NoError(t, err)
			requireContent(t, mounts, files...)
		}
		require.NoError(t, d.Close())
	}

	// A second kill leaves volumes in use.
	child := a.startChild(t)
	node := filepath.Join("/dev/mapper", a.config.Pool.Name+fmt.Sprint("-snap-", oldBox))
	require.Eventually(t, func() bool { _, err := os.Stat(node); return err == nil }, time.Minute, time.Millisecond)
	require.NoError(t, child.Process.Kill())
	require.Error(t, child.Wait())
	require.NoError(t, filesystem.UnmountAll(rootdir.Mounts(a.config.Root)))
	used, err := os.Open(node)
	require.NoError(t, err)
	ids := a.ids(t)
	require.ErrorIs(t, a.withStore(t, provision.Prove), errdefs.ErrUnavailable)
	require.ErrorIs(t, a.withStore(t, provision.Withdraw), errdefs.ErrUnavailable)
	require.Equal(t, ids, a.ids(t))
	require.NoError(t, used.Close())
	require.NoError(t, a.withStore(t, provision.Withdraw))
	require.Equal(t, []thin.ID{oldLow, oldHigh, oldBox, oldLook, theirs, oldXFS, oldXFSBox}, a.ids(t))

	// A destruction continues after a kill: the volumes that prove the pool's identity go last.
	for _, id := range []thin.ID{oldBox, oldHigh, oldLow} {
		require.NoError(t, a.pool().Delete(id))
	}
	require.NoError(t, DestroyPool(ctx, a.config))
	a.requireTheirs(t, oldLook)
}

// startChild starts TestAdoptedChild. The child's mounts end with it.
func (a *adopted) startChild(t *testing.T) *exec.Cmd {
	t.Helper()
	text, err := json.Marshal(a.config)
	require.NoError(t, err)
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestAdoptedChild$")
	child.Env = append(os.Environ(), adoptedRoot+"="+string(text))
	child.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	require.NoError(t, child.Start())
	return child
}

// TestAdoptedChild works on adopted layers until it is killed.
func TestAdoptedChild(t *testing.T) {
	text := os.Getenv(adoptedRoot)
	if text == "" {
		return // TestAdoptedPoolKilled starts it
	}
	ctx := t.Context()
	var c config.Config
	require.NoError(t, json.Unmarshal([]byte(text), &c))
	d, err := Open(ctx, c)
	require.NoError(t, err)
	_, err = d.snapshotter.Mounts(ctx, "box")
	require.NoError(t, err)
	for {
		for _, parent := range []string{"high", "xfs", ""} {
			mounts, err := d.snapshotter.Prepare(ctx, "new", parent)
			require.NoError(t, err)
			require.NoError(t, mount.WithTempMount(ctx, mounts, func(dir string) error {
				return os.WriteFile(filepath.Join(dir, "top"), content("top"), 0o600)
			}))
			require.NoError(t, d.snapshotter.Commit(ctx, "top", "new"))
			_, err = d.snapshotter.Prepare(ctx, "upon", "top")
			require.NoError(t, err)
			require.NoError(t, d.snapshotter.Remove(ctx, "upon"))
			require.NoError(t, d.snapshotter.Remove(ctx, "top"))
		}
	}
}
