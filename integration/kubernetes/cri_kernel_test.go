package kubernetes

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

const (
	// handler is a runtime whose snapshotter is thinsnap. It is runc, because a guest cannot run virtual machines.
	handler = "thin"
	// plugins is like docs/kubernetes/containerd-2.toml, with another runtime.
	plugins = `
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "` + harnesstest.PauseImage + `"
[plugins.'io.containerd.cri.v1.images'.runtime_platforms.` + handler + `]
  platform = "linux/amd64"
  snapshotter = "thinsnap"
[plugins.'io.containerd.cri.v1.runtime']
  disable_apparmor = true
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.` + handler + `]
  runtime_type = "io.containerd.runc.v2"
  snapshotter = "thinsnap"
`
)

// node is a containerd with the CRI, and a pod with one container on thin volumes.
type node struct {
	*harnesstest.Containerd
	kubelet  *harnesstest.Kubelet
	pod      *harnesstest.Pod
	thinsnap *harnesstest.Thinsnap
	images   harnesstest.Images
}

// newNode starts containerd, the pod and thinsnap, which is also the differ.
func newNode(ctx context.Context, t *testing.T) *node {
	t.Helper()
	tools, err := harness.FindTools("../..")
	require.NoError(t, err)
	harnesstest.Cell(t, "containerd's CRI", tools.Releases[0].Dir+"/containerd")
	n := &node{images: harnesstest.StartRegistry(t, tools), thinsnap: harnesstest.StartThinsnap(t, tools, "cri")}
	proxy := n.thinsnap.Proxy()
	proxy.Differ = "thinsnap-diff"
	n.Containerd = harnesstest.StartContainerdWith(t, tools, tools.Releases[0], harness.Setup{
		Dir: harnesstest.NewDisk(t), Proxies: []harness.Proxy{proxy}, CRI: plugins,
	})
	n.Ctr(t, "images", "import", "--snapshotter", "overlayfs", harnesstest.MakePauseImage(t, n.images.Busybox))
	n.kubelet = n.Kubelet(t)
	n.kubelet.Pull(ctx, t, n.images.Busybox, handler)
	require.Len(t, n.Snapshots(t, harness.ThinsnapName), 2, "the image's layers")
	n.pod = n.kubelet.StartPod(ctx, t, "pod", n.images.Busybox, handler)
	return n
}

// remove removes the pod and the images, and waits until thinsnap has no volumes of them.
func (n *node) remove(ctx context.Context, t *testing.T) {
	t.Helper()
	n.pod.Remove(ctx, t)
	n.CheckLayers(t)
	for _, name := range []string{n.images.Busybox, harnesstest.PauseImage} {
		_, err := n.kubelet.Images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: name}})
		require.NoError(t, err)
	}
	require.Eventually(t, func() bool { return len(n.Snapshots(t, harness.ThinsnapName)) == 0 },
		2*time.Minute, 200*time.Millisecond)
	require.Contains(t, n.thinsnap.Run(t, "check"), "no problems found")
}

// TestCRI does the kubelet's work for a pod of a runtime class. The image is unpacked for the runtime's snapshotter
// during the pull. Sandbox and container are on thin volumes, and everything without a runtime is on the default
// snapshotter. A checkpoint has the container's changes, as a layer of thinsnap's differ.
func TestCRI(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	n := newNode(ctx, t)
	require.Contains(t, n.pod.Exec(ctx, t, `echo kept >/file && sync && grep " / " /proc/mounts`), "/dev/mapper/cri-snap-")
	for _, s := range n.Snapshots(t, "overlayfs") {
		require.Equal(t, "Committed", s.Kind, "no container is on the default snapshotter")
	}
	for _, line := range []string{"Container: container " + n.pod.Container, "Pod: default/pod"} {
		require.Contains(t, n.thinsnap.Run(t, "inspect", n.pod.Container), line)
	}
	require.Contains(t, n.thinsnap.Run(t, "tree", "--no-trunc"), "pod default/pod: sandbox")
	t.Run("checkpoint", func(t *testing.T) { n.checkpoint(ctx, t) })
	n.remove(ctx, t)
}
