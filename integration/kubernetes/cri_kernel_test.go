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

// TestCRI does what the kubelet does for a pod of a runtime class: the image is unpacked for the runtime's snapshotter when it is
// pulled, and sandbox and container stand on thin volumes; what is for no runtime is on the default snapshotter.
func TestCRI(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	tools, err := harness.FindTools("../..")
	require.NoError(t, err)
	images := harnesstest.StartRegistry(t, tools)
	thinsnap := harnesstest.StartThinsnap(t, tools, "cri")
	disk := harnesstest.NewDisk(t)
	containerd := harnesstest.StartContainerdWith(t, tools, tools.Releases[0], harness.Setup{
		Dir: disk, Proxies: []harness.Proxy{thinsnap.Proxy()}, CRI: plugins,
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	conn := containerd.Connect(t)
	runtime, image := cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)
	containerd.Ctr(t, "images", "import", "--snapshotter", "overlayfs", pauseImage(t, images.Busybox))

	spec := &cri.ImageSpec{Image: images.Busybox, RuntimeHandler: handler}
	sandbox := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: "pod", Namespace: "default", Uid: "1"},
		LogDirectory: filepath.Join(disk, "logs"),
		Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE},
		}},
	}
	_, err = image.PullImage(ctx, &cri.PullImageRequest{Image: spec, SandboxConfig: sandbox})
	require.NoError(t, err)
	layers := containerd.Snapshots(t, harness.ThinsnapName)
	require.Len(t, layers, 2, "the image's layers")

	pod, err := runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: sandbox, RuntimeHandler: handler})
	require.NoError(t, err)
	made, err := runtime.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId: pod.PodSandboxId, SandboxConfig: sandbox,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "container"}, Image: spec, LogPath: "container.log",
			Command: []string{"sleep", "3600"}, Linux: &cri.LinuxContainerConfig{},
		},
	})
	require.NoError(t, err)
	_, err = runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: made.ContainerId})
	require.NoError(t, err)
	said, err := runtime.ExecSync(ctx, &cri.ExecSyncRequest{
		ContainerId: made.ContainerId, Cmd: []string{"sh", "-c", `echo kept >/file && sync && grep " / " /proc/mounts`}, Timeout: 60,
	})
	require.NoError(t, err)
	require.Zero(t, said.ExitCode, "%s", said.Stderr)
	require.Contains(t, string(said.Stdout), "/dev/mapper/cri-snap-")

	for _, s := range containerd.Snapshots(t, "overlayfs") {
		require.Equal(t, "Committed", s.Kind, "no container is on the default snapshotter")
	}

	_, err = runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: pod.PodSandboxId})
	require.NoError(t, err)
	_, err = runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod.PodSandboxId})
	require.NoError(t, err)
	containerd.CheckLayers(t)
	for _, name := range []string{images.Busybox, sandboxImage} {
		_, err = image.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: name}})
		require.NoError(t, err)
	}
	require.Eventually(t, func() bool { return len(containerd.Snapshots(t, harness.ThinsnapName)) == 0 },
		2*time.Minute, 200*time.Millisecond)
	require.Contains(t, thinsnap.Run(t, "check"), "no problems found")
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
