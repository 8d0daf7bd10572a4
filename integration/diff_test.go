package integration

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/stretchr/testify/require"
)

const layerMediaType = "application/vnd.oci.image.layer.v1.tar"

// testDiff: the layers of mounted and unmounted snapshots equal those of the walking differ. thinsnap's differ makes
// them in each release that supports it.
func testDiff(t *testing.T, b *testbed) {
	snapshots := func(args ...string) string {
		return b.Ctr(t, append([]string{"snapshots", "--snapshotter", b.snapshotter}, args...)...)
	}
	made := func() (layers, left uint64) {
		if b.thinsnap == nil || !b.Release.DifferProxies {
			return 0, 0
		}
		differ := b.thinsnap.Info(t).Differ
		return differ.Inodes, differ.Walked + differ.Left
	}
	layers, left := made()
	b.Pull(t, b.snapshotter, b.images.Busybox)
	top := b.TopLayer(t, b.snapshotter)
	snapshots("prepare", "changed", top)
	mounted(t, snapshots, "changed", func(dir string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "new"), bytes.Repeat([]byte("new"), 1<<20), 0o600))
		require.NoError(t, os.Remove(filepath.Join(dir, "data/numbers")))
		require.NoError(t, os.Link(filepath.Join(dir, "bin/busybox"), filepath.Join(dir, "linked")))
		numbers := filepath.Join(dir, "data/rewritten")
		require.NoError(t, os.WriteFile(numbers, []byte("1"), 0o644))
		require.NoError(t, os.Chtimes(numbers, time.Unix(1e9, 0), time.Unix(1e9, 0)))
	})
	b.CollectGarbage(t) // before the View, which it would collect, too
	snapshots("view", "below", top)
	var want bytes.Buffer
	mounted(t, snapshots, "below", func(below string) {
		mounted(t, snapshots, "changed", func(changed string) {
			require.NoError(t, archive.WriteDiff(t.Context(), &want, below, changed))
		})
	})
	snapshots("rm", "below")
	mounted(t, snapshots, "changed", func(string) {
		b.requireLayer(t, want.String(), snapshots("diff", "--media-type", layerMediaType, "changed"))
	})
	b.requireLayer(t, want.String(), snapshots("diff", "--media-type", layerMediaType, "changed"))
	snapshots("commit", "layer", "changed")
	b.requireLayer(t, want.String(), snapshots("diff", "--media-type", layerMediaType, "layer"))
	b.requireLayer(t, want.String(), snapshots("diff", "--media-type", layerMediaType, top, "layer"))
	require.NotEmpty(t, snapshots("diff", "layer"), "compressed")
	snapshots("prepare", "same", "layer")
	require.Empty(t, names(t, snapshots("diff", "--media-type", layerMediaType, "same")))
	snapshots("rm", "same")
	if b.thinsnap != nil {
		requireDiffOfAnOpenDisk(t, snapshots, top)
	}
	if nowMade, nowLeft := made(); b.thinsnap != nil && b.Release.DifferProxies {
		require.EqualValues(t, 8, nowMade-layers)
		require.Zero(t, nowLeft-left)
	}
	snapshots("rm", "layer")
	b.RemoveImage(t, b.images.Busybox)
}

// requireDiffOfAnOpenDisk: a disk that a virtual machine has open gives the same layer as when it is closed.
func requireDiffOfAnOpenDisk(t *testing.T, snapshots func(args ...string) string, parent string) {
	t.Helper()
	snapshots("prepare", "disk", parent)
	words := strings.Fields(snapshots("mounts", "/nowhere", "disk"))
	device := slices.IndexFunc(words, func(word string) bool { return strings.HasPrefix(word, "/dev/mapper/") })
	require.GreaterOrEqual(t, device, 0, words)
	mounted(t, snapshots, "disk", func(dir string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "of-the-guest"), nil, 0o600))
	})
	disk, err := os.OpenFile(words[device], os.O_RDWR, 0)
	require.NoError(t, err)
	layer := snapshots("diff", "--media-type", layerMediaType, "disk")
	require.NoError(t, disk.Close())
	require.Equal(t, []string{"of-the-guest"}, names(t, layer))
	require.Equal(t, layer, snapshots("diff", "--media-type", layerMediaType, "disk"))
	snapshots("rm", "disk")
}

// requireLayer compares a layer with that of the walking differ that this test imports. In older versions of
// containerd, deleted files have other times.
func (b *testbed) requireLayer(t *testing.T, want, got string) {
	t.Helper()
	require.Equal(t, names(t, want), names(t, got))
	if b.Release.DifferProxies && want != got {
		require.Fail(t, "the layers differ, although their entries have the same names")
	}
}

func names(t *testing.T, content string) (all []string) {
	t.Helper()
	for r := tar.NewReader(strings.NewReader(content)); ; {
		header, err := r.Next()
		if err == io.EOF {
			return all
		}
		require.NoError(t, err)
		all = append(all, header.Name)
	}
}
