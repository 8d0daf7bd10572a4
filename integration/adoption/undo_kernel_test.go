package adoption

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// TestUndo: an undo leads to a working built-in, also after work of containerd in between.
func TestUndo(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	dmtest.RequireThorough(t)
	tools, err := harness.FindTools("../..")
	require.NoError(t, err)
	for i, release := range tools.Releases[:2] {
		t.Run(release.Name, func(t *testing.T) {
			n := newNode(t, tools, variant{release: release, filesystem: dmtest.Filesystems()[i], skipsZeroing: true, small: true})
			n.content(t)
			n.newThinsnap(t)
			before := reference{n.trees(t, harness.DevmapperName), n.inventory(t, harness.DevmapperName)}
			n.stop(t)

			for _, c := range []struct {
				name string
				test func(t *testing.T, want reference)
			}{
				{"after containers have run", n.undoAfterUse},
				{"after the built-in was tried", n.undoAfterBuiltin},
				{"after new snapshots", n.undoAfterNew},
				{"after a removal", n.undoAfterRemoval},
			} {
				if !t.Run(c.name, func(t *testing.T) { c.test(t, before) }) {
					return
				}
			}
		})
	}
}

// reference is the state of the built-in before an adoption.
type reference struct {
	trees     trees
	inventory []string
}

// undo goes back to the built-in, and changes containerd's configuration as printed.
func (n *node) undo(t *testing.T) {
	t.Helper()
	out, err := n.runAdopt("--undo")
	require.NoError(t, err)
	_, patch, found := strings.Cut(out, "(- is the old line, + the new one):\n")
	require.True(t, found, out)
	n.applyPatch(t, patch)
}

// requireBuiltin: containerd runs with the built-in, which works and has its former content. It is stopped again.
func (n *node) requireBuiltin(t *testing.T, want reference) {
	t.Helper()
	n.start(t)
	want.trees.requireSame(t, n.trees(t, harness.DevmapperName))
	require.Subset(t, n.inventory(t, harness.DevmapperName), want.inventory)
	n.layer(t, otherNS, "new", upperKey)
	n.must(t, otherNS, harness.DevmapperName, func(c client) error { return c.Remove(c, "new") })
	n.stop(t)
}

// undoAfterUse undoes an adoption after thinsnap's containers have written.
func (n *node) undoAfterUse(t *testing.T, want reference) {
	n.adopt(t)
	n.startAdopted(t)
	n.use(t)
	n.must(t, otherNS, harness.ThinsnapName, func(c client) error {
		return errors.Join(c.write(activeKey, "since", func(string) error { return nil }), c.collect())
	})
	want.trees[otherNS+"/"+activeKey] = n.trees(t, harness.ThinsnapName)[otherNS+"/"+activeKey]
	n.stop(t)
	n.thinsnap.Stop(t)
	n.undo(t)
	n.requireBuiltin(t, want)
	n.start(t)
	require.Equal(t, "new", n.Ctr(t, "run", "--rm", "--snapshotter", harness.DevmapperName, n.image(), "new", "echo", "new"))
	n.stop(t)
}

// undoAfterBuiltin undoes an adoption after containerd has run with its old configuration, and then pulled an image for
// another snapshotter and collected garbage.
func (n *node) undoAfterBuiltin(t *testing.T, want reference) {
	old, adopted := n.configurations(t)
	n.adopt(t)
	n.configure(t, old)
	n.start(t)
	log, err := os.ReadFile(n.LogFile())
	require.NoError(t, err)
	require.Regexp(t, "failed to load plugin.* error=\"invalid database\".*", string(log))
	_, err = n.TryCtr("images", "ls")
	if n.release.ConfigVersion >= 3 { // containerd 2.x then has no image service
		require.ErrorContains(t, err, "unknown service")
		n.stop(t)
		n.configure(t, adopted)
		n.start(t)
	} else {
		require.NoError(t, err)
	}
	n.Pull(t, "overlayfs", n.images.Layers16)
	n.Ctr(t, "images", "rm", "--sync", n.images.Layers16)
	n.Pull(t, "overlayfs", n.images.Debian)
	n.Ctr(t, "run", "--rm", "--snapshotter", "overlayfs", n.images.Debian, "over", "true")
	n.stop(t)
	n.configure(t, adopted)
	n.undo(t)
	n.requireBuiltin(t, want)
	n.start(t)
	n.Ctr(t, "run", "--rm", "--snapshotter", "overlayfs", n.images.Debian, "over", "true")
	n.stop(t)
}

// undoAfterNew: an undo is refused until thinsnap's new snapshots are removed.
func (n *node) undoAfterNew(t *testing.T, want reference) {
	n.adopt(t)
	n.startAdopted(t)
	n.must(t, otherNS, harness.ThinsnapName, func(c client) error {
		_, err := c.Prepare(c, "new", upperKey, rooted())
		return err
	})
	n.stop(t)
	n.thinsnap.Stop(t)
	_, err := n.runAdopt("--undo")
	require.ErrorContains(t, err, "new")
	n.startAdopted(t)
	n.must(t, otherNS, harness.ThinsnapName, func(c client) error {
		// After containerd's restart, thinsnap keeps "new" until containerd has made a newer one.
		_, err := c.Prepare(c.held(), "newer", upperKey)
		return errors.Join(err, c.Remove(c, "newer"), c.Remove(c, "new"), c.collect())
	})
	n.stop(t)
	n.thinsnap.Stop(t)
	n.undo(t)
	n.requireBuiltin(t, want)
}

// undoAfterRemoval: an undo is refused, and thinsnap continues.
func (n *node) undoAfterRemoval(t *testing.T, _ reference) {
	n.adopt(t)
	n.startAdopted(t)
	n.must(t, otherNS, harness.ThinsnapName, func(c client) error { return c.Remove(c, activeKey) })
	n.must(t, otherNS, harness.ThinsnapName, client.collect)
	n.stop(t)
	n.thinsnap.Stop(t)
	_, err := n.runAdopt("--undo")
	require.ErrorContains(t, err, activeKey)
	n.startAdopted(t)
	n.removeAll(t, harness.ThinsnapName)
	n.removeLeftovers(t)
	n.requireAsBefore(t)
	require.FileExists(t, filepath.Join(n.Devmapper.Root, "metadata.db.adopted"))
}
