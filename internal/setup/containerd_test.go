package setup

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	containerd "github.com/containerd/containerd/v2/cmd/containerd/server/config"
	"github.com/containerd/containerd/v2/plugins/snapshots/devmapper"
	"github.com/containerd/containerd/v2/version"
	"github.com/containerd/log"
	"github.com/stretchr/testify/require"
)

// loadedByContainerd2 loads a file as containerd 2.x does, over its defaults
// (cmd/containerd/command/config.go: platformAgnosticDefaultConfig).
func loadedByContainerd2(t *testing.T, path string) (containerd.Config, error) {
	t.Helper()
	cfg := containerd.Config{
		Version: version.ConfigVersion, Root: defaultRoot, State: defaultState,
		DisabledPlugins: []string{}, Plugins: map[string]any{},
		StreamProcessors: map[string]containerd.StreamProcessor{},
	}
	return cfg, containerd.LoadConfig(t.Context(), path, &cfg)
}

func TestVersionIsContainerds(t *testing.T) {
	require.Equal(t, version.ConfigVersion, maxVersion)
}

// TestMergeAgreesWithContainerd2: random files that import each other, in all versions, are merged
// as by containerd 2.x.
func TestMergeAgreesWithContainerd2(t *testing.T) {
	level := log.GetLevel()
	require.NoError(t, log.SetLevel("error")) // it logs every unknown key
	t.Cleanup(func() { require.NoError(t, log.SetLevel(level.String())) })
	var sections, imports int
	for seed := range uint64(300) {
		path := written(t, randomFiles(rand.New(rand.NewPCG(seed, 15))))
		theirs, err := loadedByContainerd2(t, path)
		require.NoError(t, err, seed)
		files, err := disk{readBounded, filepath.Glob}.readAll(path)
		require.NoError(t, err, seed)
		ours, err := merge2(files)
		require.NoError(t, err, seed)

		require.Equal(t, theirs.Root, ours.root, seed)
		require.Equal(t, theirs.State, ours.state, seed)
		require.Equal(t, theirs.Plugins[devmapperURI], ours.plugins[devmapperURI], seed)
		require.Equal(t, theirs.Plugins["io.containerd.cri.v1.images"], ours.plugins["io.containerd.cri.v1.images"], seed)
		require.Equal(t, slices.Contains(theirs.DisabledPlugins, devmapperURI), slices.Contains(ours.disabled, devmapperURI), seed)
		require.Len(t, ours.proxies, len(theirs.ProxyPlugins))
		for name, proxy := range theirs.ProxyPlugins {
			require.Equal(t, Proxy{proxy.Type, proxy.Address}, ours.proxies[name], seed)
		}
		decoded, err := theirs.Decode(t.Context(), devmapperURI, &devmapper.Config{})
		require.NoError(t, err)
		section, err := readDevmapper(ours.plugins[devmapperURI])
		require.NoError(t, err)
		require.Equal(t, decoded, theirs2(section), seed)
		if section.PoolName != "" {
			sections++
		}
		if len(files) > 1 {
			imports++
		}
	}
	require.Greater(t, sections, 100, "too few files have a section")
	require.Greater(t, imports, 100, "too few files have imports")
}

// theirs2 converts a section to containerd's type, which has the same keys.
func theirs2(d Devmapper) *devmapper.Config {
	var cfg devmapper.Config
	cfg.RootPath, cfg.PoolName, cfg.BaseImageSize = d.RootPath, d.PoolName, d.BaseImageSize
	cfg.AsyncRemove, cfg.DiscardBlocks, cfg.FsOptions = d.AsyncRemove, d.DiscardBlocks, d.FsOptions
	for _, known := range []devmapper.Config{{FileSystemType: ext4}, {FileSystemType: xfs}, {FileSystemType: ext2}} {
		if string(known.FileSystemType) == d.FileSystemType {
			cfg.FileSystemType = known.FileSystemType
		}
	}
	return &cfg
}

// randomFiles returns config.toml and up to five files that import each other.
func randomFiles(r *rand.Rand) map[string]string {
	names := []string{"config.toml", "a.toml", "b.toml", "conf.d/c.toml", "conf.d/d.toml", "conf.d/e.toml"}
	names = names[:1+r.IntN(len(names))]
	files := make(map[string]string)
	for _, name := range names {
		files[name] = randomFile(r, name, names)
	}
	return files
}

func randomFile(r *rand.Rand, name string, names []string) string {
	var b strings.Builder
	maybe := func(format string, args ...any) {
		if r.IntN(2) == 0 {
			fmt.Fprintf(&b, format, args...)
		}
	}
	v := r.IntN(5)
	if v > 0 {
		fmt.Fprintf(&b, "version = %d\n", v)
	}
	maybe("root = %q\n", []string{"", "/srv/a", "/srv/b"}[r.IntN(3)])
	maybe("state = \"/run/%d\"\n", r.IntN(3))
	var imports []string
	for range r.IntN(4) {
		path, err := filepath.Rel(filepath.Dir(name), names[r.IntN(len(names))])
		if err != nil {
			panic(err)
		}
		imports = append(imports, fmt.Sprintf("%q", path))
	}
	if r.IntN(3) == 0 {
		imports = append(imports, "\"conf.d/*.toml\"", "\"none*\"")
	}
	fmt.Fprintf(&b, "imports = [%s]\n", strings.Join(imports, ", "))
	plugin := devmapperURI
	if v <= 1 && r.IntN(2) == 0 {
		plugin = devmapperName
		maybe("disabled_plugins = [\"zfs\", \"devmapper\"]\n")
	} else if r.IntN(8) == 0 {
		maybe("disabled_plugins = [%q]\n", devmapperURI)
	}
	if r.IntN(4) > 0 {
		fmt.Fprintf(&b, "[plugins.%q]\n", plugin)
		maybe("root_path = \"/dm/%d\"\n", r.IntN(3))
		maybe("pool_name = %q\n", []string{"", "one", "two"}[r.IntN(3)])
		maybe("Base_Image_Size = \"%dGB\"\n", r.IntN(3))
		maybe("async_remove = %v\n", r.IntN(2) == 0)
		maybe("discard_blocks = %v\n", r.IntN(2) == 0)
		maybe("fs_type = %q\n", []string{"ext4", "xfs", "ext2", ""}[r.IntN(4)])
		maybe("fs_options = %q\n", []string{"", "nodiscard", "a b"}[r.IntN(3)])
		maybe("unknown = [%d]\n", r.IntN(3))
		maybe("list = []\n")
		maybe("table = { a = %d }\n", r.IntN(3))
	}
	if r.IntN(2) == 0 {
		b.WriteString("[plugins.\"io.containerd.cri.v1.images\"]\n")
		maybe("snapshotter = %q\n", []string{"devmapper", "overlayfs"}[r.IntN(2)])
		maybe("registry = %s\n", []string{"{}", "3", "{ a = { b = 1 } }", "{ a = { c = [1] } }", "[{ d = 1 }]", "[]"}[r.IntN(6)])
	}
	if r.IntN(3) == 0 {
		fmt.Fprintf(&b, "[proxy_plugins.p%d]\ntype = \"snapshot\"\n", r.IntN(2))
		maybe("address = \"/run/%d\"\n", r.IntN(3))
	}
	return b.String()
}

// TestDumpsAreEqual: containerd 1.6 prints imports in random order. Any difference would make the
// installer restart containerd.
func TestDumpsAreEqual(t *testing.T) {
	var dumps []Dump
	for _, imports := range []string{`["/etc/a.toml", "/etc/b.toml"]`, `["/etc/b.toml", "/etc/a.toml"]`} {
		program := filepath.Join(t.TempDir(), "containerd")
		require.NoError(t, os.WriteFile(program, []byte("#!/bin/sh\necho 'imports = "+imports+"'\n"), 0o700))
		d, err := Containerd{Executable: program}.Dump(t.Context(), "/etc/a.toml")
		require.NoError(t, err)
		dumps = append(dumps, d)
	}
	require.Equal(t, dumps[0], dumps[1])
}
