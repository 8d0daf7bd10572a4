package kubernetes

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/stretchr/testify/require"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// checkpoint makes a checkpoint, as the kubelet does, of a container that continues to write. It is skipped on a kernel
// that criu does not support. Only .ci/skips-sid allows that skip.
func (n *node) checkpoint(ctx context.Context, t *testing.T) {
	t.Helper()
	_, err := exec.LookPath("criu")
	dmtest.RequireInstalled(t, err)
	if out, err := exec.Command("criu", "check").CombinedOutput(); err != nil {
		t.Skipf("no checkpoint with this kernel: %s", out)
	}
	n.pod.Exec(ctx, t, "echo changed >/changed && rm /data/numbers && sync")
	n.pod.Exec(ctx, t, "(while :; do echo more >>/log; done) >/dev/null 2>&1 &")
	before := n.thinsnap.Info(t).Differ
	file := filepath.Join(t.TempDir(), "checkpoint.tar")
	_, err = n.kubelet.Runtime.CheckpointContainer(ctx, &cri.CheckpointContainerRequest{ContainerId: n.pod.Container, Location: file})
	require.NoError(t, err)
	after := n.thinsnap.Info(t).Differ
	require.Equal(t, before.Left, after.Left)
	require.Greater(t, after.Written, before.Written)
	names := layerOfCheckpoint(t, file)
	require.Contains(t, names, "changed")
	require.Contains(t, names, "log")
	require.Contains(t, names, "data/.wh.numbers")
}

// layerOfCheckpoint returns the names in the layer of a checkpoint.
func layerOfCheckpoint(t *testing.T, file string) (names []string) {
	t.Helper()
	f, err := os.Open(file)
	require.NoError(t, err)
	defer f.Close()
	eachEntry(t, f, func(name string, content io.Reader) {
		if name != "rootfs-diff.tar" {
			return
		}
		layer, err := compression.DecompressStream(content)
		require.NoError(t, err)
		defer layer.Close()
		eachEntry(t, layer, func(name string, _ io.Reader) { names = append(names, name) })
	})
	return names
}

func eachEntry(t *testing.T, archive io.Reader, f func(name string, content io.Reader)) {
	t.Helper()
	for r := tar.NewReader(archive); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		require.NoError(t, err)
		f(h.Name, r)
	}
}
