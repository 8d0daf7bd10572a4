package snapshotter_test

import (
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// record returns the record of a snapshot.
func (b *bench) record(t testing.TB, key string) metadata.Snapshot {
	t.Helper()
	var rec metadata.Snapshot
	require.NoError(t, b.store.View(t.Context(), func(tx *metadata.Tx) (err error) {
		rec, err = tx.Get(key)
		return err
	}))
	return rec
}

// containerd passes the annotations of a layer's descriptor in an image's manifest to Prepare and
// Commit of the unpack, as labels. The layer is shared by all images that have it.
func TestLabelsOfAnImage(t *testing.T) {
	config := fakeConfig()
	for name, annotations := range map[string]map[string]string{
		"size":            {snapshotter.LabelSize: "16MiB"},
		"larger size":     {snapshotter.LabelSize: "1TiB"},
		"no size":         {snapshotter.LabelSize: "much"},
		"max-size":        {snapshots.LabelSnapshotMaxSize: "33554432"},
		"bad max-size":    {snapshots.LabelSnapshotMaxSize: "-1"},
		"both sizes":      {snapshotter.LabelSize: "1GiB", snapshots.LabelSnapshotMaxSize: "1073741824"},
		"owners":          {snapshots.LabelSnapshotUIDMapping: "1000:0:1,0:1000:1", snapshots.LabelSnapshotGIDMapping: "1000:0:1,0:1000:1"},
		"half the owners": {snapshots.LabelSnapshotUIDMapping: "1000:0:1"},
		"no owners":       {snapshots.LabelSnapshotUIDMapping: "suid", snapshots.LabelSnapshotGIDMapping: "dev"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, config)
			passed := map[string]string{"containerd.io/snapshot.ref": "sha256:abc"}
			for label, value := range snapshots.FilterInheritedLabels(annotations) {
				passed[label] = value
			}
			kept := map[string]string{"containerd.io/snapshot.ref": "sha256:abc"}
			parent := ""
			for _, layer := range []string{"sha256:lowest", "sha256:upper"} {
				mounts, err := b.Prepare(t.Context(), unpackKey, parent, snapshots.WithLabels(passed))
				require.NoError(t, err)
				again, err := b.Mounts(t.Context(), unpackKey)
				require.NoError(t, err)
				for _, option := range append(mounts[0].Options, again[0].Options...) {
					require.NotContains(t, option, "idmap=")
				}
				rec := b.record(t, unpackKey)
				require.Equal(t, b.config.BaseBytes, rec.Size)
				require.Equal(t, kept, rec.Labels)
				require.NoError(t, b.Commit(t.Context(), layer, unpackKey, snapshots.WithLabels(passed)))
				require.Equal(t, kept, b.record(t, layer).Labels)
				parent = layer
			}
			b.prepare(t, "k8s.io/3/container", parent)
			require.Equal(t, b.config.BaseBytes, b.record(t, "k8s.io/3/container").Size)
			require.Equal(t, []uint64{b.config.BaseBytes}, b.baseSizes(t))
		})
	}
}

// baseSizes returns the sizes of all base volumes.
func (b *bench) baseSizes(t testing.TB) (sizes []uint64) {
	t.Helper()
	require.NoError(t, b.store.View(t.Context(), func(tx *metadata.Tx) error {
		bases, err := tx.Bases()
		for _, base := range bases {
			sizes = append(sizes, base.Size)
		}
		return err
	}))
	return sizes
}
