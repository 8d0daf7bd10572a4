package daemon

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/check"
	"github.com/thinsnap/thinsnap/internal/rootdir"
)

// TestCheckDuringCommits: each run of a check reads the store before a Commit, and the pool after
// it.
func TestCheckDuringCommits(t *testing.T) {
	d, _ := newDaemon(t)
	defer func() { require.NoError(t, d.Close()) }()
	layers(t, d, "layer 0")
	commits := 0
	look := func() check.Report {
		report, err := check.Run(t.Context(), check.Sources{
			Store: d.store, Pool: d.pool, Stored: d.stored, MountDir: rootdir.Mounts(d.config.Root), Running: true,
			Unrecorded: func() map[thin.ID]bool { // after the store, before the pool's metadata
				commits++
				layers(t, d, fmt.Sprint("layer ", commits))
				return d.snapshotter.SpareVolumes()
			},
		})
		require.NoError(t, err)
		return report
	}
	first := look()
	require.Empty(t, look().Persisting(first).Findings)
	require.Equal(t, 2, commits)
}
