package daemon

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/pool"
)

// awaitSpares waits until a layer has all spares that the daemon makes.
func awaitSpares(t *testing.T, d *Daemon) {
	t.Helper()
	require.Eventually(t, func() bool {
		r, err := d.Check(t.Context(), false)
		return err == nil && len(r.Pending) == 0 && len(d.snapshotter.SpareVolumes()) > 0
	}, time.Minute, 10*time.Millisecond)
}

// removeAll removes all mapped devices with that prefix, as `dmsetup remove_all` does on a host
// without others. Devices that others use are removed after their users.
func removeAll(t *testing.T, prefix string) {
	t.Helper()
	for range 3 {
		for line := range strings.Lines(run(t, "dmsetup", "ls")) {
			if name, _, _ := strings.Cut(line, "\t"); strings.HasPrefix(name, prefix) {
				_ = exec.Command("dmsetup", "remove", name).Run() // retried after its users
			}
		}
	}
	require.NotContains(t, run(t, "dmsetup", "ls"), prefix)
}

// requireBack prepares snapshots of the layer "one" after the pool was removed from the kernel.
func requireBack(t *testing.T, d *Daemon) {
	t.Helper()
	ctx := t.Context()
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			_, err := d.snapshotter.Prepare(ctx, fmt.Sprintf("box-%d", i), "one")
			assert.NoError(t, err)
		})
	}
	all.Wait()
	requireLayers(t, d, "one", "one")
	for i := range 4 {
		mounts, err := d.snapshotter.Mounts(ctx, fmt.Sprintf("box-%d", i))
		require.NoError(t, err)
		require.FileExists(t, mounts[0].Source)
		require.NoError(t, d.snapshotter.Remove(ctx, fmt.Sprintf("box-%d", i)))
	}
	require.NoError(t, d.snapshotter.Cleanup(ctx))
	kinds, _ := findings(t, d, false)
	require.Empty(t, kinds)
}

// TestPoolThatWasRemoved runs `dmsetup remove_all` while no snapshot is in use.
func TestPoolThatWasRemoved(t *testing.T) {
	d, c := newDaemon(t)
	ctx := t.Context()
	layers(t, d, "one")
	awaitSpares(t, d)
	removeAll(t, c.Pool.Name)
	requireBack(t, d)

	// Only the recorded pool is used.
	awaitSpares(t, d)
	removeAll(t, c.Pool.Name)
	file := filepath.Join(c.Root, "pool/metadata")
	require.NoError(t, os.Rename(file, file+".away"))
	require.NoError(t, os.WriteFile(file, make([]byte, 16<<20), 0o600))
	_, err := d.snapshotter.Prepare(ctx, "other", "one")
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
	require.ErrorContains(t, err, "has no pool metadata")
	require.NotContains(t, run(t, "dmsetup", "ls"), c.Pool.Name)
	_, err = d.Info(ctx)
	require.ErrorIs(t, err, pool.ErrNotActive, "so thinsnap_pool_up is 0")
	require.NoError(t, os.Rename(file+".away", file))
	d.reopening.failed = time.Time{}
	requireBack(t, d)
	require.NoError(t, d.Close())
}

// TestVolumeGroupThatWasDeactivated runs `vgchange -an` while no snapshot is in use.
func TestVolumeGroupThatWasDeactivated(t *testing.T) {
	c := onDisk(t)
	d, err := Open(t.Context(), c)
	require.NoError(t, err)
	layers(t, d, "one")
	awaitSpares(t, d)
	removeAll(t, c.Pool.Name+"-snap-")
	run(t, "vgchange", "--activate", "n")
	requireBack(t, d)
	require.NoError(t, d.Close())
	destroy(t, c)
}

// TestForeignPoolThatWasRemoved: only its owner activates a foreign pool.
func TestForeignPoolThatWasRemoved(t *testing.T) {
	h := newHandmade(t, "a-uuid")
	c := inPool(t, h.name)
	d, err := Open(t.Context(), c)
	require.NoError(t, err)
	layers(t, d, "one")
	awaitSpares(t, d)
	removeAll(t, c.Pool.Name+"-snap-")
	h.down(t)
	_, err = d.snapshotter.Prepare(t.Context(), "box", "one")
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
	require.ErrorContains(t, err, "its owner has to activate it")
	h.up(t)
	requireBack(t, d)
	require.NoError(t, d.Close())
	destroy(t, c)
	h.down(t)
}
