package snapshotter_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

func TestForeignVolumeWithALeasedID(t *testing.T) {
	config := fakeConfig()
	config.Spares = 0 // spares would have used those ids before
	b := newBench(t, config)
	b.layer(t, "layer", "", "content")
	// Foreign volumes have thinsnap's next ids.
	next := b.volume(t, "layer") + 1
	for id := next; id < next+5; id++ {
		_ = b.pool.CreateThin(t.Context(), id)
	}
	_, err := b.Prepare(t.Context(), "a", "layer")
	require.ErrorIs(t, err, errdefs.ErrDataLoss)
	require.NoError(t, b.Cleanup(t.Context()))
	require.True(t, b.pool.IDs()[next], "not ours to delete")

	// Both stay after a restart too, although the other ids of their former lease are looked up.
	_, err = b.Prepare(t.Context(), "a", "layer")
	require.ErrorIs(t, err, errdefs.ErrDataLoss)
	b.restart(t, true)
	require.NoError(t, b.Cleanup(t.Context()))
	require.True(t, b.pool.IDs()[next])
	require.True(t, b.pool.IDs()[next+1])
	require.Equal(t, "content", b.content(t, "layer"))
	for i := range 200 { // leases are still closed
		b.prepare(t, fmt.Sprint(i), "layer")
	}
	require.NoError(t, b.store.View(t.Context(), func(tx *metadata.Tx) error {
		leases, err := tx.Leases()
		require.LessOrEqual(t, len(leases), 3)
		return err
	}))
	require.NoError(t, b.pool.Delete(t.Context(), next))
	require.NoError(t, b.pool.Delete(t.Context(), next+1))
}

// TestForeignVolumeIsNotDeletedForANewOne: an operation that fails before it creates its volume deletes
// none.
func TestForeignVolumeIsNotDeletedForANewOne(t *testing.T) {
	config := fakeConfig()
	config.Spares = 0
	for name, fault := range map[string]func(cancel context.CancelFunc) func(method string, id thin.ID) error{
		"given up": func(cancel context.CancelFunc) func(string, thin.ID) error {
			return func(method string, _ thin.ID) error {
				if method == "Status" || method == "RecentStatus" {
					cancel()
				}
				return nil
			}
		},
		"refused": func(context.CancelFunc) func(string, thin.ID) error {
			return func(method string, _ thin.ID) error {
				if method == "CreateSnap" {
					return thin.ErrPoolReadOnly
				}
				return nil
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, config)
			b.layer(t, "layer", "", "content")
			require.NoError(t, b.Cleanup(t.Context()))
			next := b.volume(t, "layer") + 1
			require.NoError(t, b.pool.CreateThin(t.Context(), next))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			b.pool.SetFault(fault(cancel))
			require.Error(t, second(b.Prepare(ctx, "a", "layer")))
			b.pool.SetFault(func(string, thin.ID) error { return nil })
			require.NoError(t, b.Cleanup(t.Context()))
			require.Contains(t, b.pool.IDs(), next)
			require.NoError(t, b.pool.Delete(t.Context(), next))
		})
	}
}

// A device that has only the name of a volume's device is kept. A volume to be discarded waits until the
// name is free.
func TestForeignDeviceWithTheNameOfARemovedVolume(t *testing.T) {
	for _, discard := range []bool{false, true} {
		config := fakeConfig()
		config.Discard = discard
		b := newBench(t, config)
		b.prepare(t, "a", "")
		id := b.volume(t, "a")
		b.pool.TakeName(id, true)
		_, err := b.Mounts(t.Context(), "a")
		require.ErrorIs(t, err, errdefs.ErrDataLoss)
		require.NoError(t, b.Remove(t.Context(), "a"))
		require.NoError(t, b.Cleanup(t.Context()))
		require.Equal(t, discard, b.pool.IDs()[id])
		b.pool.TakeName(id, false)
		b.requireNoLeftovers(t)
	}
}

// TestDeletedBeforeACrash: a crash between the deletion of a volume and that of its record causes no
// warning.
func TestDeletedBeforeACrash(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.prepare(t, "a", "")
	id := b.volume(t, "a")
	require.NoError(t, b.pool.Open(b.pool.VolumePath(id), 1))
	require.NoError(t, b.Remove(t.Context(), "a"))
	require.NoError(t, b.Close())
	b.pool.Crash()
	require.NoError(t, b.pool.Delete(t.Context(), id))
	var out bytes.Buffer
	log.L.Logger.SetOutput(&out)
	defer log.L.Logger.SetOutput(os.Stderr)
	b.openStore(t)
	require.NoError(t, b.start(t))
	b.requireNoLeftovers(t)
	require.NoError(t, b.Close())
	require.NotContains(t, out.String(), "level=warn")
}
