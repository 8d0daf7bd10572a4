package daemon

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/dmtest/faulty"
)

// requireRefusal requires that the pool's report has the same reason and remedy as a failed
// Prepare.
func requireRefusal(t *testing.T, d *Daemon, state string, remedies ...string) admin.Pool {
	t.Helper()
	_, refused := d.snapshotter.Prepare(t.Context(), "refused", "")
	require.Error(t, refused)
	p, err := d.Pool(t.Context())
	require.NoError(t, err)
	t.Log(p.State, p.NeedsCheck, p.Refusal)
	require.Equal(t, state, p.State)
	require.Contains(t, refused.Error(), p.Refusal)
	for _, remedy := range remedies {
		require.Contains(t, p.Refusal, remedy)
	}
	return p
}

// reload loads a changed table.
func reload(t *testing.T, d *Daemon, change func(table *thin.PoolTable)) {
	t.Helper()
	_, targets, err := d.control.Table(d.pool.Name())
	require.NoError(t, err)
	table, err := thin.ParsePoolTable(targets[0].Params)
	require.NoError(t, err)
	change(&table)
	target, err := table.Target(targets[0].Length)
	require.NoError(t, err)
	_, err = d.control.Load(d.pool.Name(), []devmapper.Target{target}, false)
	require.NoError(t, err)
	_, err = d.control.Suspend(d.pool.Name(), devmapper.SuspendOptions{})
	require.NoError(t, err)
	_, err = d.control.Resume(d.pool.Name())
	require.NoError(t, err)
}

// TestRefusal tests a pool that is short of space, and a read-only one.
func TestRefusal(t *testing.T) {
	d, _ := newDaemon(t)
	defer func() { require.NoError(t, d.Close()) }()
	layers(t, d, "one")
	p, err := d.Pool(t.Context())
	require.NoError(t, err)
	require.Empty(t, p.Refusal)

	reload(t, d, func(table *thin.PoolTable) { table.ReadOnly = true })
	requireRefusal(t, d, admin.StateReadOnly, "see dmesg", "thinsnap pool check")
	reload(t, d, func(table *thin.PoolTable) { table.ReadOnly = false })
	p, err = d.Pool(t.Context())
	require.NoError(t, err)
	require.Empty(t, p.Refusal)
	layers(t, d, "two")
}

func TestRefusalForWantOfSpace(t *testing.T) {
	c := damagedRoot(t)
	c.Pool.MinFreeSpace, c.Pool.AutoextendThreshold = 90, 100
	d, err := Open(t.Context(), c)
	require.NoError(t, err)
	t.Cleanup(func() { destroy(t, c) })
	defer func() { require.NoError(t, d.Close()) }()
	raw := thin.NewPool(d.control, d.pool.Name())
	for id := thin.MaxID; ; id-- { // until a tenth of the metadata is used
		p, err := d.Pool(t.Context())
		require.NoError(t, err)
		if p.Metadata.Level == admin.LevelShort {
			break
		}
		require.Empty(t, p.Refusal)
		for range 64 {
			require.NoError(t, raw.CreateThin(id))
			id--
		}
	}
	requireRefusal(t, d, admin.StateReadWrite, "less than the minimum of 90%", "remove snapshots")
}

// TestRefusalOfABrokenPool removes the disk below the pool's metadata: the kernel cannot even
// return to the last commit.
func TestRefusalOfABrokenPool(t *testing.T) {
	c := damagedRoot(t)
	disk := faulty.New(t, 64<<20)
	dir := disk.Mount(t, false)
	recordFiles(t, c, filepath.Join(c.Root, "pool", "data"), filepath.Join(dir, "metadata"))
	c.Pool.Loop.DataSize = 48 << 20
	d, err := Open(t.Context(), c)
	require.NoError(t, err)
	t.Cleanup(func() { destroy(t, c) })
	layers(t, d, "one")
	disk.Fail(t)
	_, err = d.snapshotter.Prepare(t.Context(), "box", "one")
	require.Error(t, err)
	p := requireRefusal(t, d, admin.StateFailed, "see dmesg", "fix the disk below it")
	require.Contains(t, p.Refusal, "deactivates the pool")
	require.NoError(t, d.Close())
	disk.Heal(t)
	_, err = CheckPool(t.Context(), c) // the remedy
	require.NoError(t, err)
	disk.Remount(t, dir)
}
