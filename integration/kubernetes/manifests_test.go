// Package kubernetes tests what docs/kubernetes has for Kubernetes and for containerd's CRI plugin.
package kubernetes

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"sigs.k8s.io/yaml"

	"github.com/thinsnap/thinsnap/internal/config"
)

const docs = "../../docs/kubernetes/"

// decode reads a document of a manifest; a field that its type does not have is an error.
func decode[T any](t *testing.T, document string) T {
	t.Helper()
	var into T
	require.NoError(t, yaml.UnmarshalStrict([]byte(document), &into), document)
	return into
}

func documents(t *testing.T, file string) []string {
	t.Helper()
	text, err := os.ReadFile(docs + file)
	require.NoError(t, err)
	return strings.Split(string(text), "\n---\n")
}

func TestDaemonSet(t *testing.T) {
	parts := documents(t, "daemonset.yaml")
	require.Len(t, parts, 2)
	settings := decode[corev1.ConfigMap](t, parts[0])
	set := decode[appsv1.DaemonSet](t, parts[1])
	require.Equal(t, "v1 ConfigMap", settings.APIVersion+" "+settings.Kind)
	require.Equal(t, "apps/v1 DaemonSet", set.APIVersion+" "+set.Kind)
	require.Equal(t, set.Spec.Selector.MatchLabels, set.Spec.Template.Labels)
	require.Equal(t, settings.Namespace, set.Namespace)
	pod := set.Spec.Template.Spec
	require.Len(t, pod.Containers, 1)
	container := pod.Containers[0]

	t.Run("configuration", func(t *testing.T) {
		file := filepath.Join(mount(t, container, "config").MountPath, "config.toml")
		require.Equal(t, config.DefaultPath, file)
		cfg, err := config.Parse([]byte(settings.Data["config.toml"]))
		require.NoError(t, err)
		require.Equal(t, config.Default(), cfg, "the volumes below are those of the defaults")
		uncommented := strings.ReplaceAll(settings.Data["config.toml"], "# ", "")
		_, err = config.Parse([]byte(uncommented))
		require.NoError(t, err, "the example in it")
	})
	t.Run("volumes", func(t *testing.T) {
		cfg := config.Default()
		data := mount(t, container, "data")
		require.Equal(t, cfg.Root, data.MountPath)
		require.Equal(t, corev1.MountPropagationBidirectional, *data.MountPropagation)
		require.True(t, *container.SecurityContext.Privileged, "Bidirectional is not allowed without")
		run := mount(t, container, "run").MountPath
		require.Equal(t, run, filepath.Dir(cfg.Address))
		require.Equal(t, run, filepath.Dir(cfg.AdminAddress))
		for _, volume := range pod.Volumes {
			at := mount(t, container, volume.Name)
			switch {
			case volume.ConfigMap != nil:
				require.Equal(t, settings.Name, volume.ConfigMap.Name)
			default:
				require.Equal(t, at.MountPath, volume.HostPath.Path, "paths are the same on the node")
			}
		}
		require.Len(t, container.VolumeMounts, len(pod.Volumes))
	})
	t.Run("image", func(t *testing.T) {
		if strings.Contains(container.Image, "@sha256:") {
			return
		}
		require.Equal(t, corev1.PullNever, container.ImagePullPolicy, "it is privileged, and a tag can be anything")
		require.True(t, strings.HasPrefix(container.Image, "localhost/"), "no registry has this name")
		build, err := os.ReadFile("../../packaging/image/build.sh")
		require.NoError(t, err)
		require.Contains(t, string(build), "\""+container.Image+"\"", "what make image names it")
	})
	t.Run("commands", func(t *testing.T) {
		require.Equal(t, []string{"/usr/bin/thinsnap", "serve"}, container.Command)
		require.Equal(t, []string{"/usr/bin/thinsnap", "pool", "status"}, container.ReadinessProbe.Exec.Command)
		unit, err := os.ReadFile("../../cmd/thinsnap/systemd/thinsnap.service")
		require.NoError(t, err)
		require.Contains(t, string(unit), "\nTimeoutStopSec=90\n")
		require.Equal(t, int64(90), *pod.TerminationGracePeriodSeconds, "as long as systemd waits")
	})
}

func mount(t *testing.T, container corev1.Container, name string) corev1.VolumeMount {
	t.Helper()
	i := slices.IndexFunc(container.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == name })
	require.GreaterOrEqual(t, i, 0, "no volume %s is mounted", name)
	return container.VolumeMounts[i]
}

// TestRuntimeClasses: each has its runtime in containerd's configuration.
func TestRuntimeClasses(t *testing.T) {
	var handlers []string
	for _, document := range documents(t, "runtimeclasses.yaml") {
		class := decode[nodev1.RuntimeClass](t, document)
		require.Equal(t, "node.k8s.io/v1 RuntimeClass", class.APIVersion+" "+class.Kind)
		require.Equal(t, map[string]string{"thinsnap": "true"}, class.Scheduling.NodeSelector, "the DaemonSet's nodes")
		handlers = append(handlers, class.Handler)
	}
	require.Equal(t, handlers, runtimes)
}
