package kubernetes

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/integration/vm"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// runtimes maps the runtimes in docs/kubernetes whose snapshotter is thinsnap to their shims.
var runtimes = map[string]string{
	"thinsnap":         "io.containerd.runc.v2",
	"thinsnap-kata":    "io.containerd.kata.v2",
	"thinsnap-kata-fc": "io.containerd.kata-fc.v2",
}

// loaded is a configuration as containerd has loaded it, without unknown keys.
type loaded struct {
	Version int
	Plugins map[string]map[string]any
	Proxies map[string]struct {
		Type, Address, Platform string
		Capabilities            []string
		Exports                 map[string]string
	} `toml:"proxy_plugins"`
}

// load has containerd 2.4 read a file, as its main file or as an import of that.
func load(t *testing.T, file string, asImport bool) loaded {
	t.Helper()
	cache, err := vm.CacheDir()
	require.NoError(t, err)
	containerd := filepath.Join(cache, "bin/containerd")
	_, err = os.Stat(containerd)
	dmtest.RequireInstalled(t, err)
	text, err := os.ReadFile(docs + file)
	require.NoError(t, err)
	dir := t.TempDir()
	main := filepath.Join(dir, "config.toml")
	if asImport {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "thinsnap.toml"), text, 0o600))
		text = fmt.Appendf(nil, "version = 3\nimports = [%q]\n", dir+"/thinsnap.toml")
	}
	require.NoError(t, os.WriteFile(main, text, 0o600))
	cmd := exec.Command(containerd, "--config", main, "config", "dump")
	var out, log strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &log
	require.NoError(t, cmd.Run(), log.String())
	require.NotContains(t, log.String(), "gnoring unknown key")
	var l loaded
	require.NoError(t, toml.Unmarshal([]byte(out.String()), &l))
	return l
}

// at returns the value at a path of keys.
func at(t *testing.T, table map[string]any, keys ...string) any {
	t.Helper()
	var value any = table
	for _, key := range keys {
		inner, ok := value.(map[string]any)
		require.True(t, ok, "%v: %s", keys, key)
		value = inner[key]
	}
	return value
}

// requireProxy: the configuration has thinsnap's proxy plugin with the default socket.
func requireProxy(t *testing.T, l loaded, capabilities ...string) {
	t.Helper()
	proxy := l.Proxies[harness.ThinsnapName]
	require.Equal(t, "snapshot", proxy.Type)
	require.Equal(t, config.Default().Address, proxy.Address)
	require.Equal(t, config.Default().Root, proxy.Exports["root"])
	require.ElementsMatch(t, capabilities, proxy.Capabilities)
}

func unpacked(t *testing.T, l loaded) []string {
	t.Helper()
	var snapshotters []string
	configs, ok := l.Plugins["io.containerd.transfer.v1.local"]["unpack_config"].([]any)
	require.True(t, ok)
	for _, entry := range configs {
		table, ok := entry.(map[string]any)
		require.True(t, ok)
		require.Equal(t, "linux/amd64", table["platform"])
		snapshotters = append(snapshotters, fmt.Sprint(table["snapshotter"]))
	}
	return snapshotters
}

func TestContainerd2(t *testing.T) {
	for name, asImport := range map[string]bool{"alone": false, "imported": true} {
		t.Run(name, func(t *testing.T) {
			l := load(t, "containerd-2.toml", asImport)
			requireProxy(t, l, "remap-ids")
			require.Equal(t, []string{"overlayfs", "thinsnap"}, unpacked(t, l))
			images, runtime := l.Plugins["io.containerd.cri.v1.images"], l.Plugins["io.containerd.cri.v1.runtime"]
			require.Equal(t, "overlayfs", images["snapshotter"])
			for name, shim := range runtimes {
				require.Equal(t, "thinsnap", at(t, images, "runtime_platforms", name, "snapshotter"))
				require.Equal(t, "thinsnap", at(t, runtime, "containerd", "runtimes", name, "snapshotter"))
				require.Equal(t, shim, at(t, runtime, "containerd", "runtimes", name, "runtime_type"))
			}
			require.NotNil(t, at(t, runtime, "containerd", "runtimes", "runc"), "the default is kept")
		})
	}
}

func TestContainerd2Default(t *testing.T) {
	l := load(t, "containerd-2-default.toml", false)
	requireProxy(t, l, "remap-ids")
	require.Equal(t, []string{"thinsnap"}, unpacked(t, l))
	require.Equal(t, "thinsnap", l.Plugins["io.containerd.cri.v1.images"]["snapshotter"])
}

// TestContainerd17 has containerd 2.4 read and convert the configuration for 1.7. The conversion drops the platforms of
// runtimes.
func TestContainerd17(t *testing.T) {
	l := load(t, "containerd-1.7.toml", false)
	requireProxy(t, l)
	for name, shim := range runtimes {
		runtime := l.Plugins["io.containerd.cri.v1.runtime"]
		require.Equal(t, "thinsnap", at(t, runtime, "containerd", "runtimes", name, "snapshotter"))
		require.Equal(t, shim, at(t, runtime, "containerd", "runtimes", name, "runtime_type"))
	}
	require.Empty(t, l.Plugins["io.containerd.cri.v1.images"]["runtime_platforms"])
}
