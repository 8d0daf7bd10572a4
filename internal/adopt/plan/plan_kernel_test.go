package plan_test

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	dm "github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/adopt/plan"
	"github.com/thinsnap/thinsnap/internal/check"
	"github.com/thinsnap/thinsnap/metadata"
)

// TestPlan plans the adoption of containerd's snapshots on a pool that does not zero blocks, and
// compares the result with the pool like `thinsnap check`.
func TestPlan(t *testing.T) {
	n := newNode(t, 48<<20, false)
	n.size = "16MB"
	n.start()
	n.layer("k8s.io", "image", "")
	n.prepare("k8s.io", "box", "image", 2)
	n.view("k8s.io", "look", "image")
	n.stop()

	p := n.make(n.options())
	require.Empty(t, p.Obstacles)
	require.True(t, p.Possible())
	fates := make(map[string]plan.Fate)
	for _, r := range p.Rows {
		require.Empty(t, r.Problem, "%+v", r)
		require.NotEmpty(t, r.Device)
		fates[r.Namespace+" "+r.Name+" "+r.Kind] = r.Becomes
	}
	require.Equal(t, map[string]plan.Fate{
		"k8s.io image committed": plan.Adopted, "k8s.io box active": plan.Adopted, "k8s.io look view": plan.AdoptedView,
	}, fates)
	require.Len(t, p.Idle, 2, "the container and the View")
	require.Len(t, p.Adoption.Kept, 1)
	require.Zero(t, p.Foreign)
	require.NotNil(t, p.Reload)
	for _, s := range p.Adoption.Snapshots {
		require.Equal(t, uint64(16<<20), s.Size)
		require.Equal(t, "ext4", s.Filesystem)
	}

	n.reload(p.Reload.Table)
	for _, name := range p.Idle {
		require.NoError(t, n.control.Deactivate(name))
	}
	require.Empty(t, n.check(p).Findings)
}

func (n *node) reload(params string) {
	n.t.Helper()
	_, targets, err := n.control.Table(n.Name())
	require.NoError(n.t, err)
	targets[0].Params = params
	_, err = n.control.Load(n.Name(), targets, false)
	require.NoError(n.t, err)
	_, err = n.control.Exchange(n.Name(), dm.SuspendOptions{})
	require.NoError(n.t, err)
	_, targets, err = n.control.Table(n.Name())
	require.NoError(n.t, err)
	table, err := thin.ParsePoolTable(targets[0].Params)
	require.NoError(n.t, err)
	require.False(n.t, table.SkipBlockZeroing)
}

// check compares the store of an adoption with the pool.
func (n *node) check(p plan.Plan) check.Report {
	n.t.Helper()
	store, err := metadata.Open(filepath.Join(n.t.TempDir(), "store"), metadata.Options{})
	require.NoError(n.t, err)
	defer func() { require.NoError(n.t, store.Close()) }()
	require.NoError(n.t, store.Update(n.t.Context(), func(tx *metadata.Tx) error { return tx.Adopt(p.Adoption) }))
	rec := p.Adoption.Pool
	opened, _, err := pool.ExistingSpec{
		ID: rec.ID, Name: rec.Name, Device: rec.Existing.MappedDevice, BlockBytes: rec.BlockSize,
	}.OpenLoaded(n.control)
	require.NoError(n.t, err)
	report, err := check.Run(n.t.Context(), check.Sources{Store: store, Pool: opened, Stored: stored{}})
	require.NoError(n.t, err)
	return report
}

// stored is a pool without files of thinsnap.
type stored struct{ check.Stored }

func (stored) Files() []string { return nil }
