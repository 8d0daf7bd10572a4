package daemon

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/admin"
)

// TestDeferredIsCounted: a snapshot that is removed while its device is open is counted until the
// device is closed. A container's volume counts as a deferred deletion, a layer's device as a
// deferred removal.
func TestDeferredIsCounted(t *testing.T) {
	d, _ := newDaemon(t)
	defer func() { require.NoError(t, d.Close()) }()
	layers(t, d, "layer")
	box, err := d.snapshotter.Prepare(t.Context(), "box", "layer")
	require.NoError(t, err)
	view, err := d.snapshotter.View(t.Context(), "view", "layer")
	require.NoError(t, err)
	info := requireDeferred(t, d, 0, 0)
	require.True(t, info.Driver.DeferredDeletion && info.Driver.DeferredRemoval)

	heldBox, err := os.Open(box[0].Source)
	require.NoError(t, err)
	heldView, err := os.Open(view[0].Source)
	require.NoError(t, err)
	require.NoError(t, d.snapshotter.Remove(t.Context(), "box"))
	requireDeferred(t, d, 1, 0)
	require.NoError(t, d.snapshotter.Remove(t.Context(), "view"))
	requireDeferred(t, d, 1, 1)
	require.NoError(t, heldBox.Close())
	requireDeferred(t, d, 0, 1)
	require.NoError(t, heldView.Close())
	requireDeferred(t, d, 0, 0)
}

func requireDeferred(t *testing.T, d *Daemon, deletions, removals uint64) (info admin.Info) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		var err error
		info, err = d.Info(t.Context())
		require.NoError(c, err)
		require.Equal(c, deletions, info.Devices.Trash)
		require.Equal(c, deletions, info.Background.DeferredDeletions)
		require.Equal(c, removals, info.Background.DeferredRemovals)
	}, 40*time.Second, 50*time.Millisecond)
	return info
}
