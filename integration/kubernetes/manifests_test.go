// Package kubernetes tests the files of docs/kubernetes and deploy/kubernetes for Kubernetes and for containerd's CRI
// plugin.
package kubernetes

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"sigs.k8s.io/yaml"

	"github.com/thinsnap/thinsnap/integration/vm"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

const (
	docs   = "../../docs/kubernetes/"
	deploy = "../../deploy/kubernetes"
	// ourImage is the image's name in the overlays.
	ourImage = "localhost/thinsnap"
)

// decode decodes a document of a manifest. A field that its type does not have is an error.
func decode[T any](t *testing.T, document string) T {
	t.Helper()
	var into T
	require.NoError(t, yaml.UnmarshalStrict([]byte(document), &into), document)
	return into
}

// build runs kustomize on a directory, and returns the objects' documents by "KIND NAME".
func build(t *testing.T, dir string) map[string]string {
	t.Helper()
	cache, err := vm.CacheDir()
	require.NoError(t, err)
	kustomize := filepath.Join(cache, "bin/kustomize")
	_, err = os.Stat(kustomize)
	dmtest.RequireInstalled(t, err)
	cmd := exec.Command(kustomize, "build", dir)
	var complaints strings.Builder
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	require.NoError(t, err, complaints.String())
	require.Empty(t, complaints.String(), "no warning, such as one about a deprecated field")
	objects := make(map[string]string)
	for _, document := range strings.Split(string(out), "\n---\n") {
		var meta struct {
			Kind     string
			Metadata struct{ Name, Namespace string }
		}
		require.NoError(t, yaml.Unmarshal([]byte(document), &meta))
		objects[meta.Kind+" "+meta.Metadata.Name] = document
		if meta.Kind != "RuntimeClass" {
			require.Equal(t, "kube-system", meta.Metadata.Namespace, document)
		}
	}
	return objects
}

// named returns the name of the only object of a kind, and its document.
func named(t *testing.T, objects map[string]string, kind string) (name, document string) {
	t.Helper()
	for key, text := range objects {
		if k, n, _ := strings.Cut(key, " "); k == kind {
			require.Empty(t, name, "more than one %s", kind)
			name, document = n, text
		}
	}
	require.NotEmpty(t, name, "no %s", kind)
	return name, document
}

// overlay is an overlay of deploy/kubernetes/overlays.
type overlay struct{ distribution, variant string }

func (o overlay) dir() string { return filepath.Join(deploy, "overlays", o.distribution, o.variant) }

func eachOverlay(t *testing.T, do func(t *testing.T, o overlay)) {
	t.Helper()
	for _, distribution := range []string{"containerd", "k3s", "rke2"} {
		for _, variant := range []string{"serve", "install", "remove"} {
			t.Run(distribution+"/"+variant, func(t *testing.T) { do(t, overlay{distribution, variant}) })
		}
	}
}

func daemonSet(t *testing.T, objects map[string]string) appsv1.DaemonSet {
	t.Helper()
	_, document := named(t, objects, "DaemonSet")
	set := decode[appsv1.DaemonSet](t, document)
	require.Equal(t, "apps/v1", set.APIVersion)
	return set
}

// containersOf returns all containers of a pod.
func containersOf(set appsv1.DaemonSet) []corev1.Container {
	return slices.Concat(set.Spec.Template.Spec.InitContainers, set.Spec.Template.Spec.Containers)
}

// TestOverlays: each overlay can be applied after an edit of the image's name alone.
func TestOverlays(t *testing.T) {
	eachOverlay(t, func(t *testing.T, o overlay) {
		set := daemonSet(t, build(t, o.dir()))
		require.Equal(t, set.Spec.Selector.MatchLabels, set.Spec.Template.Labels)
		pod := set.Spec.Template.Spec
		require.True(t, pod.HostPID, "serve identifies containerd's process; the others enter process 1")
		require.Len(t, pod.NodeSelector, 1)
		for label := range pod.NodeSelector {
			require.True(t, strings.HasPrefix(label, "thinsnap.io/"), label)
		}
		kind := "k3s"
		if o.distribution == "containerd" {
			kind = "containerd"
		}
		require.Equal(t, []string{"--containerd", kind}, pod.InitContainers[0].Args)
		require.Contains(t, pod.InitContainers[0].Command, "--enter")
		require.True(t, *pod.InitContainers[0].SecurityContext.Privileged)
		for _, c := range containersOf(set) {
			require.Equal(t, corev1.PullIfNotPresent, c.ImagePullPolicy, c.Name)
			name, tag, _ := strings.Cut(c.Image, ":")
			require.Equal(t, ourImage, name, "no registry has this name, so nothing is pulled before an edit")
			require.Regexp(t, `^\d+\.\d+\.\d+$`, tag, "a new version rolls the pods")
		}
	})
	t.Run("image", func(t *testing.T) {
		dir := t.TempDir()
		require.NoError(t, os.CopyFS(dir, os.DirFS(deploy)))
		file := filepath.Join(dir, "overlays/k3s/serve/kustomization.yaml")
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		digest := "sha256:" + strings.Repeat("0123", 16)
		edited := strings.Replace(string(text), "newName: "+ourImage, "newName: registry.example/thinsnap", 1)
		edited = regexp.MustCompile(`newTag: \S+`).ReplaceAllString(edited, "digest: "+digest)
		require.NoError(t, os.WriteFile(file, []byte(edited), 0o600))
		for _, c := range containersOf(daemonSet(t, build(t, filepath.Dir(file)))) {
			require.Equal(t, "registry.example/thinsnap@"+digest, c.Image)
		}
	})
}

// TestConfigurationRolls: a change of the configuration changes the name of the ConfigMap, and so the pods.
func TestConfigurationRolls(t *testing.T) {
	for _, variant := range []string{"serve", "install"} {
		t.Run(variant, func(t *testing.T) {
			dir := t.TempDir()
			require.NoError(t, os.CopyFS(dir, os.DirFS(deploy)))
			name := func() string {
				objects := build(t, filepath.Join(dir, "overlays/containerd", variant))
				name, _ := named(t, objects, "ConfigMap")
				i := slices.IndexFunc(daemonSet(t, objects).Spec.Template.Spec.Volumes, func(v corev1.Volume) bool {
					return v.ConfigMap != nil && v.ConfigMap.Name == name
				})
				require.GreaterOrEqual(t, i, 0)
				return name
			}
			before := name()
			f, err := os.OpenFile(filepath.Join(dir, variant, "config.toml"), os.O_APPEND|os.O_WRONLY, 0)
			require.NoError(t, err)
			_, err = f.WriteString("# changed\n")
			require.NoError(t, err)
			require.NoError(t, f.Close())
			require.NotEqual(t, before, name())
		})
	}
}

// configurationOf returns the configuration that a container mounts, and requires that its comments are a valid
// example.
func configurationOf(t *testing.T, objects map[string]string, container corev1.Container) config.Config {
	t.Helper()
	require.Equal(t, config.DefaultPath, filepath.Join(mount(t, container, "config").MountPath, "config.toml"))
	_, document := named(t, objects, "ConfigMap")
	text := decode[corev1.ConfigMap](t, document).Data["config.toml"]
	cfg, err := config.Parse([]byte(text))
	require.NoError(t, err)
	example := strings.NewReplacer("# [", "[", "# data_size", "data_size").Replace(text)
	require.NotEqual(t, text, example)
	_, err = config.Parse([]byte(example))
	require.NoError(t, err, "the commented example is valid")
	return cfg
}

func TestServe(t *testing.T) {
	objects := build(t, overlay{"containerd", "serve"}.dir())
	set := daemonSet(t, objects)
	pod := set.Spec.Template.Spec
	require.Len(t, pod.Containers, 1)
	container := pod.Containers[0]
	cfg := configurationOf(t, objects, container)
	t.Run("volumes", func(t *testing.T) {
		data := mount(t, container, "data")
		require.Equal(t, cfg.Root, data.MountPath)
		require.Equal(t, corev1.MountPropagationBidirectional, *data.MountPropagation)
		require.True(t, *container.SecurityContext.Privileged, "Bidirectional propagation requires it")
		run := mount(t, container, "run").MountPath
		require.Equal(t, run, filepath.Dir(cfg.Address))
		require.Equal(t, run, filepath.Dir(cfg.AdminAddress))
		for _, volume := range pod.Volumes {
			at := mount(t, container, volume.Name)
			if volume.ConfigMap == nil {
				require.Equal(t, at.MountPath, volume.HostPath.Path, "paths are the same on the node")
			}
		}
		require.Len(t, container.VolumeMounts, len(pod.Volumes))
	})
	t.Run("commands", func(t *testing.T) {
		require.Equal(t, []string{"/usr/bin/thinsnap", "serve"}, container.Command)
		require.Equal(t, []string{"/usr/bin/thinsnap", "pool", "status", "--check"}, container.ReadinessProbe.Exec.Command)
		unit, err := os.ReadFile("../../cmd/thinsnap/systemd/thinsnap.service")
		require.NoError(t, err)
		require.Contains(t, string(unit), "\nTimeoutStopSec=90\n")
		require.Equal(t, int64(90), *pod.TerminationGracePeriodSeconds, "systemd's limit")
	})
	t.Run("metrics", func(t *testing.T) {
		require.Equal(t, ":9777", cfg.MetricsAddress)
		requireMetricsPort(t, container)
	})
}

func requireMetricsPort(t *testing.T, container corev1.Container) {
	t.Helper()
	require.Equal(t, []corev1.ContainerPort{{Name: "metrics", ContainerPort: 9777}}, container.Ports)
}

func TestInstaller(t *testing.T) {
	objects := build(t, overlay{"k3s", "install"}.dir())
	pod := daemonSet(t, objects).Spec.Template.Spec
	cfg := configurationOf(t, objects, pod.InitContainers[0])
	require.Equal(t, []string{"/usr/bin/thinsnap", "node", "install", "--enter", "--default"}, pod.InitContainers[0].Command)
	container := pod.Containers[0]
	require.Equal(t, cfg, configurationOf(t, objects, container))
	require.Equal(t, filepath.Dir(cfg.AdminAddress), mount(t, container, "run").MountPath)
	require.Equal(t, []string{"/usr/bin/thinsnap", "node", "metrics", "--listen", ":9777"}, container.Command)
	require.Equal(t, []string{"/usr/bin/thinsnap", "pool", "status", "--check"}, container.ReadinessProbe.Exec.Command)
	requireMetricsPort(t, container)
	require.Nil(t, container.SecurityContext.Privileged)
}

func mount(t *testing.T, container corev1.Container, name string) corev1.VolumeMount {
	t.Helper()
	i := slices.IndexFunc(container.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == name })
	require.GreaterOrEqual(t, i, 0, "no volume %s is mounted", name)
	return container.VolumeMounts[i]
}

// TestRuntimeClasses: each runtime class has its runtime in containerd's configuration, and kata-deploy makes none of
// the same name.
func TestRuntimeClasses(t *testing.T) {
	seen := 0
	for key, document := range build(t, overlay{"containerd", "serve"}.dir()) {
		if !strings.HasPrefix(key, "RuntimeClass ") {
			continue
		}
		class := decode[nodev1.RuntimeClass](t, document)
		require.Equal(t, "node.k8s.io/v1", class.APIVersion)
		require.Equal(t, map[string]string{"thinsnap.io/snapshotter": "true"}, class.Scheduling.NodeSelector, "the DaemonSet's nodes")
		require.Contains(t, runtimes, class.Handler)
		require.Equal(t, class.Handler, class.Name)
		require.True(t, strings.HasPrefix(class.Name, "thinsnap"), "kata-deploy's begin with kata")
		seen++
	}
	require.Len(t, runtimes, seen)
}

// TestMonitoring: the job's label in Prometheus has the value that the alerts and the dashboard expect.
func TestMonitoring(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.CopyFS(filepath.Join(dir, "deploy/kubernetes"), os.DirFS(deploy)))
	require.NoError(t, os.CopyFS(filepath.Join(dir, "docs/grafana"), os.DirFS("../../docs/grafana")))
	for _, variant := range []string{"serve", "install"} {
		file := filepath.Join(dir, "deploy/kubernetes/overlays/rke2", variant, "kustomization.yaml")
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		const components = "components:\n  - ../../../monitoring\n  - ../../../../../docs/grafana\n"
		require.NoError(t, os.WriteFile(file, append(text, components...), 0o600))
		objects := build(t, filepath.Dir(file))
		var monitor struct {
			Spec struct {
				JobLabel            string
				Selector            struct{ MatchLabels map[string]string }
				PodMetricsEndpoints []struct{ Port string }
			}
		}
		require.NoError(t, yaml.Unmarshal([]byte(objects["PodMonitor thinsnap"]), &monitor))
		pod := daemonSet(t, objects).Spec.Template
		require.Equal(t, "thinsnap", pod.Labels[monitor.Spec.JobLabel])
		for label, value := range monitor.Spec.Selector.MatchLabels {
			require.Equal(t, value, pod.Labels[label])
		}
		require.Len(t, monitor.Spec.PodMetricsEndpoints, 1)
		require.Equal(t, pod.Spec.Containers[0].Ports[0].Name, monitor.Spec.PodMetricsEndpoints[0].Port)
		require.Contains(t, objects, "PrometheusRule thinsnap")
		require.True(t, slices.ContainsFunc(slices.Collect(maps.Keys(objects)), func(key string) bool {
			return strings.HasPrefix(key, "ConfigMap thinsnap-dashboard-")
		}))
	}
}
