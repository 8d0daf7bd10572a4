package plan_test

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/adopt/plan"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// TestPlanWithOlderDatabases: containerd's databases are from a backup. The pool's ids have been
// given to other volumes since, none of which is adopted, or kept for a later deletion.
func TestPlanWithOlderDatabases(t *testing.T) {
	dmtest.RequireThorough(t)
	n := newNode(t, 1<<30, true)
	n.start()
	n.layer("default", "base", "")
	n.prepare("default", "root", "", 1)
	n.prepare("default", "nameless", "", 1)
	root, nameless := n.backend("default", "root"), n.backend("default", "nameless")
	ctx, sn := n.in("default")
	require.NoError(t, sn.Remove(ctx, "nameless"))
	n.stop()
	backup := t.TempDir()
	require.NoError(t, os.CopyFS(backup, os.DirFS(n.root)))
	n.start()
	n.remove("default", "root")
	require.NoError(t, n.snapshotter.Remove(t.Context(), nameless))
	n.prepare("default", "box", "base", 1)
	n.prepare("default", "second", "base", 1)
	n.stop()
	require.NoError(t, os.RemoveAll(n.root))
	require.NoError(t, os.CopyFS(n.root, os.DirFS(backup)))

	p := n.make(n.options())
	fates := make(map[string]plan.Fate)
	for _, r := range p.Rows {
		fates[r.Key] = r.Becomes
	}
	require.Equal(t, plan.LeftOut, fates[root])
	require.Equal(t, plan.Foreign, fates[nameless])
}
