package snapshotter_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/metadata"
)

// TestUsageOfOlderRecords: records of an earlier version lack the exact usage, which is read once.
func TestUsageOfOlderRecords(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.layer(t, "layer", "", "content")
	b.layer(t, "upper", "layer", "content, and more")
	want, err := b.Usage(t.Context(), "upper")
	require.NoError(t, err)
	var rec, parent metadata.Snapshot
	require.NoError(t, b.store.View(t.Context(), func(tx *metadata.Tx) (err error) {
		if rec, err = tx.Get("upper"); err == nil {
			parent, err = tx.Get("layer")
		}
		return err
	}))
	require.True(t, rec.Usage.Exact)
	rec.Usage.Exact, rec.Usage.Own = false, 0
	before := b.pool.Calls()["Usage"]
	for range 3 {
		usage, err := b.UsageOf(t.Context(), rec, parent.VolumeID)
		require.NoError(t, err)
		require.Equal(t, uint64(want.Size), usage.Own)
	}
	require.Equal(t, 1, b.pool.Calls()["Usage"]-before)
}
