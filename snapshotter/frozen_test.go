package snapshotter_test

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// freeze freezes a snapshot until the end of the test.
func (b *bench) freeze(t *testing.T, key string) *snapshotter.Frozen {
	t.Helper()
	frozen, err := b.Freeze(t.Context(), key)
	require.NoError(t, err)
	t.Cleanup(func() { frozen.Release(context.WithoutCancel(t.Context())) })
	return frozen
}

func (b *bench) requireFrozen(t *testing.T, f *snapshotter.Frozen, content string) {
	t.Helper()
	got, err := b.pool.Read(f.Path)
	require.NoError(t, err)
	require.Equal(t, content, got)
	require.Error(t, b.pool.Write(f.Path, "changed"), "it refuses writes")
}

// TestFreeze: a frozen copy keeps its content when its snapshot is written to or removed, and leaves
// nothing behind.
func TestFreeze(t *testing.T) {
	for _, inUse := range []bool{false, true} {
		t.Run(fmt.Sprintf("in use: %v", inUse), func(t *testing.T) {
			b := newBench(t, fakeConfig())
			b.layer(t, "layer", "", "of the layer")
			dev := b.prepare(t, "a", "layer")
			if inUse {
				require.NoError(t, b.pool.Open(dev, 1))
			}
			require.NoError(t, b.pool.Write(dev, "first"))
			one := b.freeze(t, "a")
			require.NoError(t, b.pool.Write(dev, "second"))
			two := b.freeze(t, "a")
			require.NoError(t, b.pool.Write(dev, "third"))
			if inUse {
				require.NoError(t, b.pool.Open(dev, -1))
			}
			require.Equal(t, "a", one.Key)
			require.NotEqual(t, one.ID, two.ID)
			require.NotEqual(t, b.volume(t, "a"), one.ID)
			require.Equal(t, b.config.BaseBytes, one.Bytes)
			require.Equal(t, b.config.Filesystem, one.Filesystem)
			require.NoError(t, b.Remove(t.Context(), "a"))
			require.NoError(t, b.Cleanup(t.Context()))
			b.requireFrozen(t, one, "first")
			b.requireFrozen(t, two, "second")
			require.True(t, b.UnrecordedVolumes()[one.ID])

			// A copy that is in use at its release is deleted afterwards.
			require.NoError(t, b.pool.Open(two.Path, 1))
			for range 2 {
				one.Release(t.Context())
				two.Release(t.Context())
			}
			require.False(t, b.pool.IDs()[one.ID])
			require.True(t, b.pool.IDs()[two.ID])
			require.NoError(t, b.pool.Open(two.Path, -1))
			b.requireNoLeftovers(t)
		})
	}
}

// TestFreezeOfWhatIsCommitted: the volume stays until the release, even that of a removed layer or a base
// volume.
func TestFreezeOfWhatIsCommitted(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.layer(t, "layer", "", "content")
	id := b.volume(t, "layer")
	one, two := b.freeze(t, "layer"), b.freeze(t, "layer")
	b.requireFrozen(t, one, "content")
	require.Equal(t, id, one.ID)
	require.NoError(t, b.Remove(t.Context(), "layer"))
	one.Release(t.Context())
	require.NoError(t, b.Cleanup(t.Context()))
	b.requireFrozen(t, two, "content")
	two.Release(t.Context())
	require.NoError(t, b.Cleanup(t.Context()))
	require.False(t, b.pool.IDs()[id])

	mounts, err := b.View(t.Context(), "view", "")
	require.NoError(t, err)
	view := b.freeze(t, "view")
	require.Equal(t, mounts[0].Source, view.Path)
	require.NoError(t, b.Remove(t.Context(), "view"))
	require.NoError(t, b.Cleanup(t.Context()))
	b.requireFrozen(t, view, "")
	view.Release(t.Context())
	require.NoError(t, b.Cleanup(t.Context()))
	require.False(t, b.pool.IsActive(view.ID))
}

// TestFreezeIsRefused: a refused Freeze leaves nothing behind.
func TestFreezeIsRefused(t *testing.T) {
	b := newBench(t, fakeConfig())
	dev := b.prepare(t, "a", "")
	freeze := func() error {
		_, err := b.Freeze(t.Context(), "a")
		b.requireNoLeftovers(t)
		return err
	}
	_, err := b.Freeze(t.Context(), "unknown")
	require.ErrorIs(t, err, errdefs.ErrNotFound)

	b.pool.SetStatus(func(s *pool.Status) { s.Data.Used = s.Data.Total / 100 * 95 })
	require.ErrorIs(t, freeze(), errdefs.ErrResourceExhausted)
	b.pool.SetStatus(func(s *pool.Status) { s.Data.Used, s.Mode = 0, thin.ModeReadOnly })
	require.ErrorIs(t, freeze(), errdefs.ErrUnavailable)
	b.pool.SetStatus(func(s *pool.Status) { s.Mode = thin.ModeReadWrite })
	for _, method := range []string{"Suspend", "CreateSnap", "Activate", "SetReadOnly", "Flush"} {
		failed := false
		b.pool.SetFault(func(m string, id thin.ID) error {
			if m == method && (method != "Flush" || id != b.volume(t, "a")) && !failed {
				failed = true
				return unix.EINVAL
			}
			return nil
		})
		if method == "Suspend" {
			// Newer kernels return this error during an unmount: Freeze retries.
			require.NoError(t, func() error {
				frozen, err := b.Freeze(t.Context(), "a")
				if err == nil {
					frozen.Release(t.Context())
				}
				return err
			}())
		} else {
			require.Error(t, freeze(), method)
		}
		require.True(t, failed, method)
	}
	b.pool.SetFault(func(string, thin.ID) error { return nil })
	require.NoError(t, b.pool.Write(dev, "it is writable"))

	var all []*snapshotter.Frozen
	for {
		frozen, err := b.Freeze(t.Context(), "a")
		if err != nil {
			require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
			require.ErrorContains(t, err, "frozen copies")
			break
		}
		all = append(all, frozen)
	}
	require.Len(t, all, 64)
	for _, frozen := range all {
		frozen.Release(t.Context())
	}
	b.freeze(t, "a").Release(t.Context())
	b.requireNoLeftovers(t)
}

// TestFrozenCopyAtARestart: a stop deletes unused copies, and a start the others once they are unused.
func TestFrozenCopyAtARestart(t *testing.T) {
	for _, crash := range []bool{false, true} {
		t.Run(fmt.Sprintf("crash: %v", crash), func(t *testing.T) {
			b := newBench(t, fakeConfig())
			b.prepare(t, "a", "")
			idle, err := b.Freeze(t.Context(), "a")
			require.NoError(t, err)
			mounted, err := b.Freeze(t.Context(), "a")
			require.NoError(t, err)
			require.NoError(t, b.pool.Open(mounted.Path, 1))
			b.restart(t, crash)
			require.False(t, b.pool.IDs()[idle.ID])
			if !crash {
				require.NoError(t, b.Cleanup(t.Context()))
				require.True(t, b.pool.IDs()[mounted.ID])
				require.NoError(t, b.pool.Open(mounted.Path, -1))
			}
			b.requireNoLeftovers(t)
		})
	}
}

func TestFindMounted(t *testing.T) {
	config := fakeConfig()
	config.MountDir = "/root/mounts"
	b := newBench(t, config)
	b.layer(t, "layer", "", "")
	find := func(m mount.Mount) string {
		t.Helper()
		key, err := b.FindMounted(t.Context(), m)
		if key == "" {
			require.ErrorIs(t, err, errdefs.ErrNotFound)
			return ""
		}
		require.NoError(t, err)
		return key
	}
	mounts, err := b.Prepare(t.Context(), "a", "layer")
	require.NoError(t, err)
	require.Equal(t, "a", find(mounts[0]))
	require.NoError(t, b.pool.Open(mounts[0].Source, 1))
	bound, err := b.Mounts(t.Context(), "a")
	require.NoError(t, err)
	require.Equal(t, "bind", bound[0].Type)
	require.Equal(t, "a", find(bound[0]))
	view, err := b.View(t.Context(), "view", "layer")
	require.NoError(t, err)
	require.Equal(t, "layer", find(view[0]))
	view, err = b.View(t.Context(), "view of nothing", "")
	require.NoError(t, err)
	require.Equal(t, "view of nothing", find(view[0]))
	require.NoError(t, b.Remove(t.Context(), "view of nothing"))
	require.Empty(t, find(view[0]))

	for _, source := range []string{"", "/", "/dev/sda", mounts[0].Source + "0", filepath.Base(mounts[0].Source), "/tmp" + mounts[0].Source,
		filepath.Dir(bound[0].Source), bound[0].Source + "/dir", "/root/mounts/x/share/root", "/root/mounts"} {
		require.Empty(t, find(mount.Mount{Type: "ext4", Source: source}), source)
		require.Empty(t, find(mount.Mount{Type: "bind", Source: source}), source)
	}
	require.NoError(t, b.pool.Open(mounts[0].Source, -1))
	require.NoError(t, b.Remove(t.Context(), "a"))
	require.Empty(t, find(mounts[0]))
	require.Empty(t, find(bound[0]))
}
