package harnesstest

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/thinsnap/thinsnap/integration/harness"
)

// Kubelet calls containerd's CRI as the kubelet does.
type Kubelet struct {
	Runtime cri.RuntimeServiceClient
	Images  cri.ImageServiceClient
	logs    string // directory of the pods' logs
}

// Kubelet connects to the daemon's CRI until the test ends.
func (c *Containerd) Kubelet(t testing.TB) *Kubelet {
	t.Helper()
	conn := c.Connect(t)
	return &Kubelet{
		Runtime: cri.NewRuntimeServiceClient(conn),
		Images:  cri.NewImageServiceClient(conn),
		logs:    filepath.Join(c.Dir, "logs"),
	}
}

// Pod is a pod with one container, on the machine's network.
type Pod struct {
	ID        string
	Container string // ID
	kubelet   *Kubelet
}

func (k *Kubelet) sandbox(name string) *cri.PodSandboxConfig {
	return &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "default", Uid: name},
		Labels:       podLabels(name, ""),
		LogDirectory: k.logs,
		Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE},
		}},
	}
}

// Pull pulls an image for a runtime.
func (k *Kubelet) Pull(ctx context.Context, t testing.TB, image, handler string) {
	t.Helper()
	_, err := k.Images.PullImage(ctx, &cri.PullImageRequest{
		Image: &cri.ImageSpec{Image: image, RuntimeHandler: handler}, SandboxConfig: k.sandbox("pull"),
	})
	require.NoError(t, err)
}

// StartPod starts a pod with a runtime and one container of an image that is already pulled.
func (k *Kubelet) StartPod(ctx context.Context, t testing.TB, name, image, handler string) *Pod {
	t.Helper()
	config := k.sandbox(name)
	pod, err := k.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	require.NoError(t, err)
	made, err := k.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId: pod.PodSandboxId, SandboxConfig: config,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "container"}, Labels: podLabels(name, "container"),
			Image:   &cri.ImageSpec{Image: image, RuntimeHandler: handler},
			LogPath: "container.log", Command: []string{"sleep", "3600"}, Linux: &cri.LinuxContainerConfig{},
		},
	})
	require.NoError(t, err)
	_, err = k.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: made.ContainerId})
	require.NoError(t, err)
	return &Pod{ID: pod.PodSandboxId, Container: made.ContainerId, kubelet: k}
}

// podLabels returns the labels that the kubelet gives a pod's sandbox and its containers.
func podLabels(pod, container string) map[string]string {
	labels := map[string]string{"io.kubernetes.pod.name": pod, "io.kubernetes.pod.namespace": "default"}
	if container != "" {
		labels["io.kubernetes.container.name"] = container
	}
	return labels
}

// Exec runs a script in the container, and returns its output.
func (p *Pod) Exec(ctx context.Context, t testing.TB, script string) string {
	t.Helper()
	said, err := p.kubelet.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{
		ContainerId: p.Container, Cmd: []string{"sh", "-c", script}, Timeout: 60,
	})
	require.NoError(t, err)
	require.Zero(t, said.ExitCode, "%s", said.Stderr)
	return string(said.Stdout)
}

// Stop stops the pod and its container.
func (p *Pod) Stop(ctx context.Context, t testing.TB) {
	t.Helper()
	_, err := p.kubelet.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.ID})
	require.NoError(t, err)
}

// Remove stops and removes the pod and its container.
func (p *Pod) Remove(ctx context.Context, t testing.TB) {
	t.Helper()
	p.Stop(ctx, t)
	_, err := p.kubelet.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.ID})
	require.NoError(t, err)
}

// PauseImage is the name of the image of a pod's sandbox, whose program runs until it is stopped.
const PauseImage = "docker.io/library/pause:1"

// MakePauseImage makes an archive of PauseImage from the image busybox.
func MakePauseImage(t testing.TB, busybox string) string {
	t.Helper()
	dir := t.TempDir()
	layout, archive := filepath.Join(dir, "oci")+":pause", filepath.Join(dir, "pause.tar")
	for _, command := range [][]string{
		{"skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", "docker://" + busybox, "oci:" + layout},
		{"umoci", "config", "--image", layout, "--config.cmd", "sleep", "--config.cmd", "86400"},
		{"skopeo", "--insecure-policy", "copy", "--quiet", "oci:" + layout, "oci-archive:" + archive + ":" + PauseImage},
	} {
		_, err := harness.Run(nil, command[0], command[1:]...)
		require.NoError(t, err, strings.Join(command, " "))
	}
	return archive
}
