package snapshotter_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
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

// TestCommitOnALostParent: a container can be committed and measured after its parent's volume was lost.
func TestCommitOnALostParent(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.mismatched = true
	b.layer(t, "layer", "", "content")
	b.prepare(t, "box", "layer")
	require.NoError(t, b.Cleanup(t.Context()))
	lost := b.volume(t, "layer")
	_ = b.pool.Deactivate(t.Context(), lost)
	require.NoError(t, b.pool.Delete(t.Context(), lost))
	usage, err := b.Usage(t.Context(), "box")
	require.NoError(t, err)
	require.Positive(t, usage.Size)
	require.NoError(t, b.Commit(t.Context(), "saved", "box"))
	saved, err := b.Usage(t.Context(), "saved")
	require.NoError(t, err)
	require.Equal(t, usage.Size, saved.Size)
	usage, err = b.Usage(t.Context(), "layer")
	require.NoError(t, err, "the record has the usage")
	require.Positive(t, usage.Size)
}

// TestCommitWithoutTheMetadata: with unreadable pool metadata, a Commit uses the kernel's own figure.
func TestCommitWithoutTheMetadata(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.layer(t, "layer", "", "content")
	for _, cause := range []error{thinmeta.ErrDamaged, unix.EIO, pool.ErrMetadataSnapshot} {
		key := cause.Error()
		b.prepare(t, key, "layer")
		b.pool.SetFault(func(method string, _ thin.ID) error {
			if method == "Usage" {
				return cause
			}
			return nil
		})
		require.NoError(t, b.Commit(t.Context(), "saved of "+key, key))
		b.pool.SetFault(func(string, thin.ID) error { return nil })
		rec := b.record(t, "saved of "+key)
		require.False(t, rec.Usage.Exact)
		require.Positive(t, rec.Usage.Bytes)
	}
}
