package kubernetes

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

const (
	// handler is a runtime that has thinsnap for its snapshotter. It is runc, for want of virtual machines in virtual machines.
	handler = "thin"
	// sandboxImage runs until it is stopped.
	sandboxImage = "docker.io/library/pause:1"
	// plugins is as docs/kubernetes/containerd-2.toml has it for other runtimes.
	plugins = `
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "` + sandboxImage + `"
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

// node is a containerd with the CRI, and a pod with one container that runs on thin volumes.
type node struct {
	*harnesstest.Containerd
	thinsnap  *harnesstest.Thinsnap
	images    harnesstest.Images
	runtime   cri.RuntimeServiceClient
	image     cri.ImageServiceClient
	pod       string
	container string
}

// newNode starts all that. thinsnap is the differ, too.
func newNode(ctx context.Context, t *testing.T) *node {
	t.Helper()
	tools, err := harness.FindTools("../..")
	require.NoError(t, err)
	n := &node{images: harnesstest.StartRegistry(t, tools), thinsnap: harnesstest.StartThinsnap(t, tools, "cri")}
	disk, proxy := harnesstest.NewDisk(t), n.thinsnap.Proxy()
	proxy.Differ = "thinsnap-diff"
	n.Containerd = harnesstest.StartContainerdWith(t, tools, tools.Releases[0], harness.Setup{
		Dir: disk, Proxies: []harness.Proxy{proxy}, CRI: plugins,
	})
	conn := n.Connect(t)
	n.runtime, n.image = cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)
	n.Ctr(t, "images", "import", "--snapshotter", "overlayfs", pauseImage(t, n.images.Busybox))

	spec := &cri.ImageSpec{Image: n.images.Busybox, RuntimeHandler: handler}
	sandbox := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: "pod", Namespace: "default", Uid: "1"},
		LogDirectory: filepath.Join(disk, "logs"),
		Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE},
		}},
	}
	_, err = n.image.PullImage(ctx, &cri.PullImageRequest{Image: spec, SandboxConfig: sandbox})
	require.NoError(t, err)
	require.Len(t, n.Snapshots(t, harness.ThinsnapName), 2, "the image's layers")
	pod, err := n.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: sandbox, RuntimeHandler: handler})
	require.NoError(t, err)
	made, err := n.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId: pod.PodSandboxId, SandboxConfig: sandbox,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "container"}, Image: spec, LogPath: "container.log",
			Command: []string{"sleep", "3600"}, Linux: &cri.LinuxContainerConfig{},
		},
	})
	require.NoError(t, err)
	_, err = n.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: made.ContainerId})
	require.NoError(t, err)
	n.pod, n.container = pod.PodSandboxId, made.ContainerId
	return n
}

// exec runs a script in the container, and returns what it says.
func (n *node) exec(ctx context.Context, t *testing.T, script string) string {
	t.Helper()
	said, err := n.runtime.ExecSync(ctx, &cri.ExecSyncRequest{
		ContainerId: n.container, Cmd: []string{"sh", "-c", script}, Timeout: 60,
	})
	require.NoError(t, err)
	require.Zero(t, said.ExitCode, "%s", said.Stderr)
	return string(said.Stdout)
}

// remove removes the pod and the images, and waits until thinsnap has nothing of them.
func (n *node) remove(ctx context.Context, t *testing.T) {
	t.Helper()
	_, err := n.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: n.pod})
	require.NoError(t, err)
	_, err = n.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: n.pod})
	require.NoError(t, err)
	n.CheckLayers(t)
	for _, name := range []string{n.images.Busybox, sandboxImage} {
		_, err = n.image.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: name}})
		require.NoError(t, err)
	}
	require.Eventually(t, func() bool { return len(n.Snapshots(t, harness.ThinsnapName)) == 0 },
		2*time.Minute, 200*time.Millisecond)
	require.Contains(t, n.thinsnap.Run(t, "check"), "no problems found")
}

// TestCRI does what the kubelet does for a pod of a runtime class: the image is unpacked for the runtime's snapshotter when it is
// pulled, and sandbox and container stand on thin volumes; what is for no runtime is on the default snapshotter. A checkpoint
// has what the container has changed, and thinsnap's differ has made it.
func TestCRI(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	n := newNode(ctx, t)
	require.Contains(t, n.exec(ctx, t, `echo kept >/file && sync && grep " / " /proc/mounts`), "/dev/mapper/cri-snap-")
	for _, s := range n.Snapshots(t, "overlayfs") {
		require.Equal(t, "Committed", s.Kind, "no container is on the default snapshotter")
	}
	t.Run("checkpoint", func(t *testing.T) { n.checkpoint(ctx, t) })
	n.remove(ctx, t)
}

// pauseImage makes an archive of an image whose program does nothing, from one whose program does what it is told.
func pauseImage(t *testing.T, busybox string) string {
	t.Helper()
	dir := t.TempDir()
	layout, archive := filepath.Join(dir, "oci")+":pause", filepath.Join(dir, "pause.tar")
	for _, command := range [][]string{
		{"skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", "docker://" + busybox, "oci:" + layout},
		{"umoci", "config", "--image", layout, "--config.cmd", "sleep", "--config.cmd", "86400"},
		{"skopeo", "--insecure-policy", "copy", "--quiet", "oci:" + layout, "oci-archive:" + archive + ":" + sandboxImage},
	} {
		out, err := exec.CommandContext(t.Context(), command[0], command[1:]...).CombinedOutput()
		require.NoError(t, err, "%s: %s", strings.Join(command, " "), out)
	}
	return archive
}
