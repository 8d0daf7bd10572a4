package integration

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Every client's way to pull unpacks the image, and removing the image removes what that made.
func testPull(t *testing.T, b *bench) {
	image := b.images.Busybox
	for _, way := range []struct {
		name string
		skip bool
		pull func(*testing.T)
	}{
		{name: "ctr with the transfer service", skip: !b.Release.Transfer, pull: func(t *testing.T) {
			b.Pull(t, b.snapshotter, image)
		}},
		{name: "ctr by itself", pull: func(t *testing.T) {
			if b.Release.Transfer {
				b.Pull(t, b.snapshotter, image, "--local")
			} else {
				b.Pull(t, b.snapshotter, image)
			}
		}},
		{name: "nerdctl", pull: func(t *testing.T) {
			b.Nerdctl(t, b.snapshotter, "pull", "--quiet", image)
		}},
	} {
		t.Run(way.name, func(t *testing.T) {
			if way.skip {
				t.Skipf("%s has none", b.Release.Name)
			}
			way.pull(t)
			snapshots := b.Snapshots(t, b.snapshotter)
			require.Len(t, snapshots, 2, "one for each layer")
			for _, s := range snapshots {
				require.Equal(t, "Committed", s.Kind)
			}
			b.RemoveImage(t, image)
			b.requireEmpty(t)
		})
	}
}
