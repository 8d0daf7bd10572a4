package kubernetes

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/yaml"

	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
	"github.com/thinsnap/thinsnap/integration/vm"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// readOnlyPort is the kubelet's port without TLS.
const readOnlyPort = 10255

// kubelet is a real kubelet without an API server, so without runtime classes. Its pods are files in a directory.
type kubelet struct {
	*harness.Process
	dir, program string
	runtime      *harnesstest.Containerd
	settings     map[string]any // in addition to the usual ones
}

// newKubelet returns a kubelet that is not started.
func newKubelet(t *testing.T, runtime *harnesstest.Containerd, settings map[string]any) *kubelet {
	t.Helper()
	cache, err := vm.CacheDir()
	require.NoError(t, err)
	k := &kubelet{dir: harnesstest.NewDisk(t), program: filepath.Join(cache, "bin/kubelet"), runtime: runtime, settings: settings}
	require.NoError(t, os.Mkdir(k.manifests(), 0o700))
	t.Cleanup(func() {
		if k.Process == nil {
			return
		}
		k.Kill()
		if t.Failed() {
			t.Log(k.Log())
		}
		// The kubelet makes its root a shared mount, unless it already is in one.
		if err := unix.Unmount(k.root(), 0); !errors.Is(err, unix.EINVAL) {
			require.NoError(t, err)
		}
	})
	return k
}

func (k *kubelet) root() string { return filepath.Join(k.dir, "kubelet") }

func (k *kubelet) manifests() string { return filepath.Join(k.dir, "manifests") }

// start starts the kubelet, for the first time or after its end.
func (k *kubelet) start(t *testing.T) {
	t.Helper()
	config := map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"authentication":           map[string]any{"anonymous": map[string]any{"enabled": true}, "webhook": map[string]any{"enabled": false}},
		"authorization":            map[string]any{"mode": "AlwaysAllow"},
		"address":                  "127.0.0.1",
		"readOnlyPort":             readOnlyPort,
		"staticPodPath":            k.manifests(),
		"containerRuntimeEndpoint": "unix://" + k.runtime.Address(),
		"cgroupDriver":             "cgroupfs",
		"failSwapOn":               false,
		"makeIPTablesUtilChains":   false,
		"resolvConf":               "",
		"podLogsDir":               filepath.Join(k.dir, "logs"),
		"volumePluginDir":          filepath.Join(k.dir, "plugins"),
		"fileCheckFrequency":       "1s",
		"syncFrequency":            "5s",
		"evictionHard":             map[string]any{"memory.available": "1Mi"},
	}
	for key, value := range k.settings {
		config[key] = value
	}
	text, err := yaml.Marshal(config)
	require.NoError(t, err)
	file := filepath.Join(k.dir, "kubelet.yaml")
	require.NoError(t, os.WriteFile(file, text, 0o600))
	cmd := exec.Command(k.program, "--config", file, "--root-dir", k.root(), "--hostname-override", "node", "-v=2")
	k.Process, err = harness.Start(cmd, k.dir, "kubelet", func() bool { _, err := k.pods(); return err == nil })
	require.NoError(t, err)
}

// get reads a document from the kubelet's port.
func (k *kubelet) get(path string, into any) error {
	answer, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d%s", readOnlyPort, path))
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", path, answer.Status)
	}
	return json.NewDecoder(answer.Body).Decode(into)
}

func (k *kubelet) pods() (corev1.PodList, error) {
	var list corev1.PodList
	return list, k.get("/pods", &list)
}

// summary is the file-system part of the kubelet's statistics.
type summary struct {
	Node struct {
		Runtime struct {
			ImageFs     filesystem
			ContainerFs filesystem
		}
	}
	Pods []struct {
		PodRef     struct{ Name string }
		Containers []struct{ Rootfs filesystem }
	}
}

type filesystem struct{ AvailableBytes, CapacityBytes, UsedBytes uint64 }

// add has the kubelet run a pod of one container on the host's network.
func (k *kubelet) add(t *testing.T, name, image, script string, limit string) {
	t.Helper()
	pod := corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec: corev1.PodSpec{HostNetwork: true, TerminationGracePeriodSeconds: new(int64), Containers: []corev1.Container{{
			Name: "box", Image: image, ImagePullPolicy: corev1.PullIfNotPresent, Command: []string{"sh", "-c", script},
		}}},
	}
	if limit != "" {
		pod.Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceEphemeralStorage: resource.MustParse(limit)}
	}
	text, err := yaml.Marshal(pod)
	require.NoError(t, err)
	file := filepath.Join(k.dir, name+".yaml")
	require.NoError(t, os.WriteFile(file, text, 0o600))
	require.NoError(t, os.Rename(file, filepath.Join(k.manifests(), name+".yaml")))
}

func (k *kubelet) remove(t *testing.T, name string) {
	t.Helper()
	require.NoError(t, os.Remove(filepath.Join(k.manifests(), name+".yaml")))
}

// await waits until a pod is in a phase; if that is Running, with all its containers running.
func (k *kubelet) await(t *testing.T, name string, phase corev1.PodPhase) (found corev1.Pod) {
	t.Helper()
	require.NoError(t, k.Await(func() bool {
		list, err := k.pods()
		if err != nil {
			return false
		}
		for _, pod := range list.Items {
			if pod.Name != name+"-node" || pod.Status.Phase != phase {
				continue
			}
			found = pod
			return phase != corev1.PodRunning || len(pod.Status.ContainerStatuses) == 1 && pod.Status.ContainerStatuses[0].State.Running != nil
		}
		return false
	}), "%s is not %s", name, phase)
	return found
}

// awaitEmpty waits until no pod and no sandbox is left. The kubelet removes sandboxes once a minute.
func (k *kubelet) awaitEmpty(t *testing.T) {
	t.Helper()
	client := k.runtime.Kubelet(t)
	require.NoError(t, k.Await(func() bool {
		list, err := client.Runtime.ListPodSandbox(t.Context(), &cri.ListPodSandboxRequest{})
		return err == nil && len(list.Items) == 0
	}))
}

// failures returns the lines of the log about sandboxes and containers that could not be made or started because
// thinsnap or containerd did not answer.
func (k *kubelet) failures(t *testing.T) (lines []string) {
	t.Helper()
	text, err := os.ReadFile(k.LogFile())
	require.NoError(t, err)
	for line := range strings.Lines(string(text)) {
		if failure.MatchString(line) {
			require.Contains(t, line, "Unavailable", "all else is a fault")
			require.Contains(t, line, "connection error", line)
			lines = append(lines, line)
		}
	}
	return lines
}

var failure = regexp.MustCompile(`"(RunPodSandbox|CreateContainer|StartContainer).* failed"|Failed to create sandbox`)

// requireKubelet skips the test unless `make kubelet` runs it.
func requireKubelet(t *testing.T) {
	t.Helper()
	if os.Getenv("THINSNAP_KUBELET") == "" {
		t.Skip("a kubelet takes minutes to build, and checks images every five minutes: make kubelet")
	}
}

// newKubeletNode starts thinsnap, and a containerd whose CRI uses it as the default snapshotter, or as that of the
// default runtime.
func newKubeletNode(t *testing.T, o harness.Options, isDefault bool) *node {
	t.Helper()
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	tools, err := harness.FindTools("../..")
	require.NoError(t, err)
	n := &node{images: harnesstest.StartRegistry(t, tools), thinsnap: harnesstest.StartThinsnapWith(t, tools, "kubelet", o)}
	cri := plugins
	if isDefault {
		cri += "[plugins.'io.containerd.cri.v1.images']\n  snapshotter = 'thinsnap'\n"
	} else {
		cri += "[plugins.'io.containerd.cri.v1.runtime'.containerd]\n  default_runtime_name = '" + handler + "'\n"
	}
	n.Containerd = harnesstest.StartContainerdWith(t, tools, tools.Releases[0], harness.Setup{
		Dir: harnesstest.NewDisk(t), Proxies: []harness.Proxy{n.thinsnap.Proxy()}, CRI: cri,
	})
	n.Ctr(t, "images", "import", "--snapshotter", "overlayfs", harnesstest.MakePauseImage(t, n.images.Busybox))
	return n
}

// TestKubelet has a real kubelet run pods on thinsnap, the snapshotter of all pods, or of the default runtime. Pods
// survive restarts of thinsnap, containerd and the kubelet, and new ones start after each.
func TestKubelet(t *testing.T) {
	requireKubelet(t)
	for name, isDefault := range map[string]bool{"all pods": true, "a runtime": false} {
		t.Run(name, func(t *testing.T) {
			n := newKubeletNode(t, harness.Options{}, isDefault)
			k := newKubelet(t, n.Containerd, nil)
			harnesstest.Cell(t, "kubelet, for "+name, k.program)
			k.start(t)
			running := map[string]string{} // container ids by pod
			add := func(pod string) {
				k.add(t, pod, n.images.Busybox, "echo "+pod+" >/name && while :; do sleep 1; done", "")
				running[pod] = k.await(t, pod, corev1.PodRunning).Status.ContainerStatuses[0].ContainerID
			}
			sameAsBefore := func() {
				t.Helper()
				for pod, id := range running {
					status := k.await(t, pod, corev1.PodRunning).Status.ContainerStatuses[0]
					require.Equal(t, id, status.ContainerID, pod)
					require.Zero(t, status.RestartCount, pod)
				}
			}
			add("first")
			add("second")
			n.thinsnap.Stop(t)
			n.thinsnap.Start(t)
			n.AwaitSnapshotter(t, harness.ThinsnapName)
			add("after-thinsnap")
			sameAsBefore()

			require.NoError(t, n.Stop())
			require.NoError(t, n.Start())
			n.AwaitSnapshotter(t, harness.ThinsnapName)
			add("after-containerd")
			sameAsBefore()

			k.Kill()
			k.start(t)
			add("after-kubelet")
			sameAsBefore()

			failed := len(k.failures(t)) // on a slow machine containerd may give up a connection after a second
			require.EqualValues(t, 2*len(running), n.thinsnap.Info(t).Snapshots.Active, "sandboxes and containers")

			// A sandbox fails while thinsnap is stopped, and the kubelet tries again.
			n.thinsnap.Stop(t)
			k.add(t, "without-thinsnap", n.images.Busybox, "sleep 3600", "")
			require.NoError(t, k.Await(func() bool { return len(k.failures(t)) > failed }))
			n.thinsnap.Start(t)
			running["without-thinsnap"] = k.await(t, "without-thinsnap", corev1.PodRunning).Status.ContainerStatuses[0].ContainerID
			sameAsBefore()
			require.EqualValues(t, 2*len(running), n.thinsnap.Info(t).Snapshots.Active, "the failed sandbox has left nothing")

			for pod := range running {
				k.remove(t, pod)
			}
			k.awaitEmpty(t)
			k.Kill()
			require.Contains(t, n.thinsnap.Run(t, "check"), "no problems found")
		})
	}
}

// TestKubeletSpace: the kubelet measures the file system of thinsnap's root directory, so it collects images only if
// that has the pool's file. The usage of a container is exact, and the kubelet detects a pod above its limit. It evicts
// the pod, unless the pod comes from a file, as here.
func TestKubeletSpace(t *testing.T) {
	requireKubelet(t)
	root := filepath.Join(harnesstest.NewDisk(t), "thinsnap")
	n := newKubeletNode(t, harness.Options{Root: root}, true)
	// 100 turns the collection off. An image may be removed a second after its use.
	k := newKubelet(t, n.Containerd, map[string]any{
		"imageMinimumGCAge": "1s", "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
	})
	k.start(t)
	k.add(t, "writer", n.images.Debian, "dd if=/dev/zero of=/file bs=1M count=24 && sync && sleep 3600", "")
	k.await(t, "writer", corev1.PodRunning)
	const written = 24 << 20
	var all summary
	usage := func() uint64 {
		for _, pod := range all.Pods {
			if pod.PodRef.Name == "writer-node" && len(pod.Containers) == 1 {
				return pod.Containers[0].Rootfs.UsedBytes
			}
		}
		return 0
	}
	require.NoError(t, k.Await(func() bool { return k.get("/stats/summary", &all) == nil && usage() >= written }))
	require.Less(t, usage(), uint64(written+8<<20), "only the container's writes")
	var disk unix.Statfs_t
	require.NoError(t, unix.Statfs(root, &disk))
	fs := all.Node.Runtime.ImageFs
	require.Equal(t, disk.Blocks*uint64(disk.Bsize), fs.CapacityBytes, "of the disk below the root directory, not of the pool")
	require.InDelta(t, disk.Bavail*uint64(disk.Bsize), fs.AvailableBytes, 64<<20)
	require.GreaterOrEqual(t, fs.UsedBytes, uint64(1<<20), "of images")

	t.Run("eviction", func(t *testing.T) {
		const tooMuch = `cannot evict a critical pod" pod="default/`
		k.add(t, "modest", n.images.Busybox, "dd if=/dev/zero of=/file bs=1M count=24 && sync && sleep 3600", "32Mi")
		k.await(t, "modest", corev1.PodRunning)
		k.add(t, "greedy", n.images.Busybox, "dd if=/dev/zero of=/file bs=1M count=64 && sync && sleep 3600", "32Mi")
		logged := func() string {
			text, err := os.ReadFile(k.LogFile())
			require.NoError(t, err)
			return string(text)
		}
		require.NoError(t, k.Await(func() bool { return strings.Contains(logged(), tooMuch+"greedy-node") }))
		require.NotContains(t, logged(), tooMuch+"modest-node")
		k.remove(t, "greedy")
		k.remove(t, "modest")
	})
	t.Run("images", func(t *testing.T) {
		k.remove(t, "writer")
		k.awaitEmpty(t)
		hasImage := func() bool { return strings.Contains(n.Ctr(t, "images", "ls", "-q"), n.images.Debian) }
		require.True(t, hasImage())
		before := n.thinsnap.Info(t).Pool.Data.Used
		k.Kill()
		k.settings["imageGCHighThresholdPercent"], k.settings["imageGCLowThresholdPercent"] = 1, 0
		k.start(t) // checks images every five minutes, and knows an image's age from its first check
		require.Eventually(t, func() bool { return !hasImage() }, 12*time.Minute, 15*time.Second)
		require.Eventually(t, func() bool { return n.thinsnap.Info(t).Pool.Data.Used < before }, 2*time.Minute, time.Second)
	})
}

// TestKubeletDoesNotSeeADisk: for a pool on a disk of its own, the kubelet still measures the file system of the root
// directory. docs/kubernetes.md has the remedies, one of which is the age of images.
func TestKubeletDoesNotSeeADisk(t *testing.T) {
	requireKubelet(t)
	device := os.Getenv("THINSNAP_DISK0")
	require.NotEmpty(t, device, "THINSNAP_DISK0 names a disk that may be overwritten")
	root := filepath.Join(harnesstest.NewDisk(t), "thinsnap")
	n := newKubeletNode(t, harness.Options{Root: root, Device: device}, true)
	k := newKubelet(t, n.Containerd, map[string]any{
		"imageMinimumGCAge": "1s", "imageMaximumGCAge": "1m", "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
	})
	k.start(t)
	k.add(t, "box", n.images.Busybox, "sleep 3600", "")
	k.await(t, "box", corev1.PodRunning)
	var all summary
	require.NoError(t, k.Await(func() bool { return k.get("/stats/summary", &all) == nil && all.Node.Runtime.ImageFs.CapacityBytes > 0 }))
	var disk unix.Statfs_t
	require.NoError(t, unix.Statfs(root, &disk))
	require.Equal(t, disk.Blocks*uint64(disk.Bsize), all.Node.Runtime.ImageFs.CapacityBytes)
	require.NotEqual(t, n.thinsnap.Info(t).Pool.Data.Total, all.Node.Runtime.ImageFs.CapacityBytes)

	k.remove(t, "box")
	k.awaitEmpty(t)
	begun := time.Now()
	require.Eventually(t, func() bool {
		return !strings.Contains(n.Ctr(t, "images", "ls", "-q"), n.images.Busybox)
	}, 12*time.Minute, 15*time.Second, "the image is older than a minute, and the kubelet looks every five")
	t.Logf("collected after %s", time.Since(begun).Round(time.Second))
}
