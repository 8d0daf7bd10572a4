package snapshotter_test

import (
	"fmt"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter"
)

func (b *bench) record(t testing.TB, key string) metadata.Snapshot {
	t.Helper()
	var rec metadata.Snapshot
	require.NoError(t, b.store.View(t.Context(), func(tx *metadata.Tx) (err error) {
		rec, err = tx.Get(key)
		return err
	}))
	return rec
}

// containerd passes a layer's annotations in an image's manifest as labels to Prepare and Commit of the
// unpack. All images with the layer share it.
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

func TestSizes(t *testing.T) {
	config := fakeConfig()
	config.MaxBytes = 1 << 30
	b := newBench(t, config)
	b.layer(t, "layer", "", "content")
	size := func(value string) map[string]string { return map[string]string{snapshotter.LabelSize: value} }
	hint := func(value string) map[string]string { return map[string]string{snapshots.LabelSnapshotMaxSize: value} }
	for _, test := range []struct {
		name, parent string
		labels       map[string]string
		err          error
		bytes        uint64
	}{
		{name: "default", bytes: 64 << 20},
		{name: "larger", labels: size("1GiB"), bytes: 1 << 30},
		{name: "smaller than the base", labels: size("32MiB"), bytes: 32 << 20},
		{name: "rounded up", labels: hint("100000001"), bytes: 100003840},
		{name: "child", parent: "layer", labels: size("128m"), bytes: 128 << 20},
		{name: "child by hint", parent: "layer", labels: hint("134217728"), bytes: 128 << 20},
		{name: "child as large", parent: "layer", labels: size("64m"), bytes: 64 << 20},
		{name: "child too small", parent: "layer", labels: size("63m"), err: errdefs.ErrInvalidArgument},
		{name: "too small", labels: size("1m"), err: errdefs.ErrInvalidArgument},
		{name: "nonsense", labels: size("much"), err: errdefs.ErrInvalidArgument},
		{name: "above the limit", labels: size("4PiB"), bytes: 1 << 30},
		{name: "child above the limit", parent: "layer", labels: size("2GiB"), bytes: 1 << 30},

		{name: "hint above the limit", parent: "layer", labels: hint("1000000000000"), bytes: 1 << 30},
		{name: "negative hint", labels: hint("-1"), bytes: 64 << 20},
		{name: "hint with a unit", parent: "layer", labels: hint("1GiB"), bytes: 64 << 20},
		{name: "hint below the parent", parent: "layer", labels: hint("33554432"), bytes: 64 << 20},
		{name: "hint below the smallest", labels: hint("4096"), bytes: 64 << 20},
		{name: "hint beyond 64 bits", labels: hint("99999999999999999999"), bytes: 64 << 20},
		{name: "both", labels: map[string]string{snapshots.LabelSnapshotMaxSize: "1", snapshotter.LabelSize: "512m"}, bytes: 512 << 20},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := b.Prepare(t.Context(), test.name, test.parent, snapshots.WithLabels(test.labels))
			if test.err != nil {
				require.ErrorIs(t, err, test.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, test.bytes, b.record(t, test.name).Size)
		})
	}
	b.requireNoLeftovers(t)
}

// By default, max_size is base_size, and a label cannot request more.
func TestNoSizeAboveTheDefault(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.layer(t, "layer", "", "content")
	for _, parent := range []string{"", "layer"} {
		key := "child of " + parent
		b.prepare(t, key, parent, labels(snapshotter.LabelSize, "1TiB"))
		require.Equal(t, b.config.BaseBytes, b.record(t, key).Size)
	}
}

// A parent from before a lower limit keeps its size, and its children get it.
func TestParentAboveTheLimit(t *testing.T) {
	config := fakeConfig()
	config.MaxBytes = 1 << 30
	b := newBench(t, config)
	b.prepare(t, "large", "", labels(snapshotter.LabelSize, "1GiB"))
	require.NoError(t, b.Commit(t.Context(), "layer", "large"))
	b.config.MaxBytes = 128 << 20
	b.restart(t, false)
	for _, size := range []string{"", "1GiB", "2GiB"} {
		b.prepare(t, "child "+size, "layer", labels(snapshotter.LabelSize, size))
		require.EqualValues(t, 1<<30, b.record(t, "child "+size).Size)
	}
}

// A larger base_size applies to new containers of old images. Layers that are unpacked onto an old layer,
// and Views, keep its size.
func TestBaseSizeRaised(t *testing.T) {
	b := newBench(t, fakeConfig())
	old := b.config.BaseBytes
	b.layer(t, "layer", "", "content")
	b.prepare(t, "old container", "layer")
	b.config.BaseBytes = 4 * old
	b.restart(t, false)

	b.prepare(t, "container", "layer")
	require.Equal(t, 4*old, b.record(t, "container").Size)
	require.Equal(t, old, b.record(t, "old container").Size)
	b.prepare(t, unpackKey, "layer")
	require.Equal(t, old, b.record(t, unpackKey).Size)
	_, err := b.View(t.Context(), "view", "layer")
	require.NoError(t, err)
	require.Equal(t, old, b.record(t, "view").Size)
	b.prepare(t, "asks for its parent's size", "layer", labels(snapshotter.LabelSize, fmt.Sprint(old)))
	require.Equal(t, old, b.record(t, "asks for its parent's size").Size)

	require.NoError(t, b.Commit(t.Context(), "upper", unpackKey))
	require.NoError(t, b.Commit(t.Context(), "larger", "container"))
	b.prepare(t, "child of larger", "larger")
	require.Equal(t, 4*old, b.record(t, "child of larger").Size)
	// Spares have the size of a container.
	b.awaitSpares(t, int(b.Spares().Present))
	taken := b.Spares().Taken
	dev := b.prepare(t, "child of upper", "upper")
	require.Equal(t, taken+1, b.Spares().Taken)
	require.Equal(t, 4*old, b.record(t, "child of upper").Size)
	require.Equal(t, 4*old, b.pool.Bytes(dev))

	b.config.BaseBytes = old
	b.restart(t, false)
	b.prepare(t, "again", "layer")
	require.Equal(t, old, b.record(t, "again").Size)
	b.prepare(t, "of a larger parent", "larger")
	require.Equal(t, 4*old, b.record(t, "of a larger parent").Size)
}
