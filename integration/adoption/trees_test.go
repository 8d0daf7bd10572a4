package adoption

import (
	"context"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/tree"
)

const differencesShown = 20

// trees maps NAMESPACE/NAME of snapshots to their trees.
type trees map[string]tree.Tree

// trees reads the trees of all snapshots; on a small node, only of those without children.
func (n *node) trees(t *testing.T, snapshotter string) trees {
	t.Helper()
	all := make(trees)
	for _, ns := range n.namespaces() {
		n.must(t, ns, snapshotter, func(c client) error {
			infos, err := c.infos()
			for _, info := range infos {
				lower := slices.ContainsFunc(infos, func(other snapshots.Info) bool { return other.Parent == info.Name })
				if err == nil && (!n.small || !lower) {
					all[ns+"/"+info.Name], err = c.tree(t, info)
				}
			}
			return err
		})
	}
	return all
}

func (c client) infos() (infos []snapshots.Info, err error) {
	err = c.Walk(c, func(_ context.Context, info snapshots.Info) error {
		infos = append(infos, info)
		return nil
	})
	return infos, err
}

// tree reads the tree of a snapshot, without changing it.
func (c client) tree(t *testing.T, info snapshots.Info) (files tree.Tree, err error) {
	t.Helper()
	var mounts []mount.Mount
	if info.Kind == snapshots.KindCommitted {
		const key = "to compare"
		mounts, err = c.View(c, key, info.Name, rooted())
		defer func() { require.NoError(t, c.Remove(c, key)) }()
	} else {
		mounts, err = c.Mounts(c, info.Name)
	}
	if err != nil {
		return nil, err
	}
	for i := range mounts {
		if !slices.Contains(mounts[i].Options, "ro") {
			mounts[i].Options = append(mounts[i].Options, "ro")
		}
	}
	err = mount.WithTempMount(c, mounts, func(dir string) error {
		files, err = tree.Walk(dir)
		return err
	})
	return files, err
}

// requireSame: all of the snapshots exist, with the same trees.
func (want trees) requireSame(t *testing.T, got trees) {
	t.Helper()
	files := 0
	for name, files := range want {
		require.Contains(t, got, name)
		differences := tree.Compare(files, got[name])
		for _, d := range differences[:min(len(differences), differencesShown)] {
			t.Errorf("%s: %s", name, d)
		}
	}
	for _, tree := range want {
		files += len(tree)
	}
	t.Logf("%d trees compared, with %d files", len(want), files)
}
