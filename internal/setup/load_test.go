package setup

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

// written writes files into a new directory, and returns the path of its config.toml.
func written(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	}
	return filepath.Join(dir, "config.toml")
}

const (
	section = "[plugins.\"io.containerd.snapshotter.v1.devmapper\"]\n"
	minimal = section + "pool_name = \"pool\"\nbase_image_size = \"10GB\"\n"
)

// TestLoad: the section is read in every version of the file. In version 1 it has its short name.
func TestLoad(t *testing.T) {
	want := Devmapper{
		RootPath: "/srv/dm", PoolName: "fc-dev-thinpool", BaseImageSize: "8192MB", AsyncRemove: true, DiscardBlocks: true,
		FileSystemType: "xfs", FsOptions: "a b", Unknown: []string{"devices", "pool"},
	}
	for _, start := range []string{
		"[plugins.devmapper]\n", "version = 1\n[plugins.devmapper]\n", section, "version = 2\n" + section,
		"version = 3\n[plugins]\n  [plugins.'io.containerd.snapshotter.v1.devmapper']\n", "version = 4\n" + section,
	} {
		path := written(t, map[string]string{"config.toml": start + `
    root_path = "/srv/dm"
    pool_name = "fc-dev-thinpool"
    base_image_size = "8192MB"
    async_remove = true
    discard_blocks = true
    fs_type = "xfs"
    fs_options = "a b"
    pool = "x"
    devices = { a = 1 }
`})
		cfg, err := Load(path)
		require.NoError(t, err, start)
		require.Equal(t, want, cfg.Devmapper, start)
		require.Equal(t, []string{path}, cfg.Files)
	}
}

func TestDefaults(t *testing.T) {
	for text, want := range map[string]Config{
		minimal: {
			Version: 1, Only: "2.x", Root: "/var/lib/containerd", State: "/run/containerd",
			Devmapper: Devmapper{RootPath: "/var/lib/containerd/io.containerd.snapshotter.v1.devmapper"},
		},
		"version = 2\nroot = \"/srv/ctd\"\nstate = \"/run/x\"\n" + minimal: {
			Version: 2, Root: "/srv/ctd", State: "/run/x",
			Devmapper: Devmapper{RootPath: "/srv/ctd/io.containerd.snapshotter.v1.devmapper"},
		},
		"version = 2\ndisabled_plugins = [\"io.containerd.snapshotter.v1.devmapper\"]\n" + minimal: {
			Version: 2, Root: "/var/lib/containerd", State: "/run/containerd",
			Devmapper: Devmapper{RootPath: "/var/lib/containerd/io.containerd.snapshotter.v1.devmapper", Disabled: true},
		},
		"disabled_plugins = [\"devmapper\"]\n" + strings.Replace(minimal, section, "[plugins.devmapper]\n", 1): {
			Version: 1, Root: "/var/lib/containerd", State: "/run/containerd",
			Devmapper: Devmapper{RootPath: "/var/lib/containerd/io.containerd.snapshotter.v1.devmapper", Disabled: true},
		},
	} {
		path := written(t, map[string]string{"config.toml": text})
		want.Files, want.Proxies = []string{path}, map[string]Proxy{}
		want.Devmapper.PoolName, want.Devmapper.BaseImageSize, want.Devmapper.FileSystemType = "pool", "10GB", "ext4"
		cfg, err := Load(path)
		require.NoError(t, err)
		require.Equal(t, want, cfg, text)
	}
}

// TestAt: another root changes the default paths below it.
func TestAt(t *testing.T) {
	for text, want := range map[string]string{
		minimal:                               "/srv/io.containerd.snapshotter.v1.devmapper",
		minimal + "root_path = \"/var/dm\"\n": "/var/dm",
	} {
		cfg, err := Load(written(t, map[string]string{"config.toml": "version = 2\n" + text}))
		require.NoError(t, err)
		cfg = cfg.At("/srv")
		require.Equal(t, "/srv", cfg.Root)
		require.Equal(t, want, cfg.Devmapper.RootPath)
	}
}

// TestImports: in each case containerd 1.x and 2.x agree, or the built-in starts with only one of
// them.
func TestImports(t *testing.T) {
	whole := "version = 2\n" + section + "pool_name = \"other\"\nbase_image_size = \"20GB\"\n"
	part := "version = 2\n" + section + "base_image_size = \"20GB\"\n"
	first := "version = 2\nimports = [\"conf.d/*.toml\"]\n"
	for name, c := range map[string]struct {
		files            map[string]string
		pool, size, only string
		read             []string
	}{
		"section in an import": {
			map[string]string{"config.toml": first, "conf.d/a.toml": whole, "conf.d/b": "["},
			"other", "20GB", "", []string{"conf.d/a.toml"},
		},
		"whole section again": {
			map[string]string{"config.toml": first + minimal, "conf.d/a.toml": whole}, "other", "20GB", "",
			[]string{"conf.d/a.toml"},
		},
		"part of a section": {
			map[string]string{"config.toml": first + minimal, "conf.d/a.toml": part}, "pool", "20GB", "2.x",
			[]string{"conf.d/a.toml"},
		},
		"the last counts": {
			map[string]string{"config.toml": first, "conf.d/a.toml": "version = 2\n" + minimal, "conf.d/b.toml": whole},
			"other", "20GB", "", []string{"conf.d/a.toml", "conf.d/b.toml"},
		},
		"breadth first, each once": {
			map[string]string{
				"config.toml": "version = 2\nimports = [\"./x/../a\", \"b\", \"a\"]\n", "b": whole,
				"a": "version = 2\nimports = [\"sub/c\", \"a\"]\n" + minimal, "sub/c": "imports = [\"../b\"]\n",
			},
			"other", "20GB", "", []string{"a", "b", "sub/c"},
		},
		"no version, which 2.x takes for 1, and a name that 1.x refuses": {
			map[string]string{
				"config.toml": "version = 2\nimports = [\"a\"]\n",
				"a":           "[plugins.devmapper]\npool_name = \"short\"\nbase_image_size = \"1GB\"\n",
			},
			"short", "1GB", "", []string{"a"},
		},
		"version 3 is for 2.x only": {
			map[string]string{"config.toml": "version = 3\nimports = [\"a\"]\n" + minimal, "a": part}, "pool", "20GB", "",
			[]string{"a"},
		},
		"only 1.x": {
			map[string]string{
				"config.toml": "version = 2\nimports = [\"a\"]\n" + minimal + "fs_type = \"zfs\"\n", "a": whole,
			},
			"other", "20GB", "1.x", []string{"a"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := written(t, c.files)
			cfg, err := Load(path)
			require.NoError(t, err)
			require.Equal(t, c.pool, cfg.Devmapper.PoolName)
			require.Equal(t, c.size, cfg.Devmapper.BaseImageSize)
			require.Equal(t, c.only, cfg.Only)
			require.Equal(t, path, cfg.Files[0])
			for i, name := range c.read {
				c.read[i] = filepath.Join(filepath.Dir(path), name)
			}
			require.Equal(t, c.read, cfg.Files[1:])
		})
	}
}

func TestLoadRefuses(t *testing.T) {
	for text, want := range map[string]struct {
		text  string
		class error
	}{
		"x = [": {"config.toml: line 1: array is incomplete: correct it", errdefs.ErrInvalidArgument},
		"version = 2\nimports = 1\n": {
			"config.toml: line 2: \"imports\": cannot decode TOML integer into", errdefs.ErrInvalidArgument,
		},
		"version = 5\n":  {"version = 5: not supported: this version of thinsnap reads versions 1 to 4", errdefs.ErrNotImplemented},
		"version = -1\n": {"version = -1: not supported", errdefs.ErrNotImplemented},
		"version = 2\n":  {"has no pool_name, so containerd does not start its built-in", errdefs.ErrNotFound},
		"version = 2\n" + section + "pool_name = \"\"\n": {"has no pool_name", errdefs.ErrNotFound},
		"version = 2\n" + section + "pool_name = \"x\"\n": {
			"has base_image_size = \"\", with which", errdefs.ErrInvalidArgument,
		},
		"version = 2\n" + minimal + "fs_type = \"btrfs\"\n":                   {"has fs_type = \"btrfs\", with which", errdefs.ErrInvalidArgument},
		"version = 2\n" + section + "pool_name = 3\n":                         {"\"pool_name\": cannot decode TOML integer", errdefs.ErrInvalidArgument},
		"version = 2\nplugins.'io.containerd.snapshotter.v1.devmapper' = 3\n": {"it must be a table", errdefs.ErrInvalidArgument},
		minimal + "[plugins.devmapper]\npool_name = \"x\"\n": {
			"has the sections [plugins.devmapper] and [plugins.\"io.containerd.snapshotter.v1.devmapper\"]",
			errdefs.ErrInvalidArgument,
		},
		"version = 2\nimports = [\"none\"]\n" + minimal: {
			"config.toml imports it, and containerd does not start without it: restore the file", errdefs.ErrNotFound,
		},
		"version = 2\nimports = [\"[*\"]\n" + minimal: {"syntax error in pattern", errdefs.ErrInvalidArgument},
		"version = 2\nimports = [\"bad\"]\n" + minimal: {
			"bad: line 1: ", errdefs.ErrInvalidArgument,
		},
		"version = 2\n" + minimal + strings.Repeat("a.", maxDepth) + "a = 1\n": {"nested more than 64 levels deep", errdefs.ErrInvalidArgument},
		"#" + strings.Repeat("x", maxBytes):                                    {"is larger than 1048576 bytes", errdefs.ErrInvalidArgument},
	} {
		path := written(t, map[string]string{"config.toml": text, "bad": "["})
		_, err := Load(path)
		require.ErrorIs(t, err, want.class)
		require.ErrorContains(t, err, want.text)
	}
}

// TestReleasesDiffer: containerd 1.x and 2.x merge the imports differently, and the built-in would
// start with both.
func TestReleasesDiffer(t *testing.T) {
	_, err := Load(written(t, map[string]string{
		"config.toml": "version = 2\nimports = [\"a\"]\n" + minimal + "discard_blocks = true\nunknown = 1\n",
		"a":           "version = 2\n" + section + "pool_name = \"other\"\nbase_image_size = \"10GB\"\n",
	}))
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "do not agree on discard_blocks (1.x has false, 2.x true): write the section in one file")
}

func TestMissingFile(t *testing.T) {
	_, err := Load(filepath.Join(t.TempDir(), "none"))
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.ErrorContains(t, err, "name the file that containerd reads")
	_, err = Load(t.TempDir())
	require.ErrorContains(t, err, "is a directory")
}

// TestBounds: the number and the size of all files together are limited.
func TestBounds(t *testing.T) {
	files := map[string]string{"config.toml": "version = 2\nimports = [\"c/*\"]\n" + minimal}
	for i := range maxFiles - 1 {
		files[fmt.Sprintf("c/%d", i)] = ""
	}
	_, err := Load(written(t, files))
	require.NoError(t, err)
	files["c/more"] = ""
	_, err = Load(written(t, files))
	require.ErrorContains(t, err, "1048576 bytes or 256 files")

	half := "#" + strings.Repeat("x", maxBytes/2)
	_, err = Load(written(t, map[string]string{
		"config.toml": "version = 2\nimports = [\"a\", \"b\"]\n" + minimal, "a": half, "b": half,
	}))
	require.ErrorContains(t, err, "1048576 bytes or 256 files")
	require.ErrorContains(t, err, "imported by ")
}

// TestUses: every key that names a snapshotter is found, in all versions.
func TestUses(t *testing.T) {
	cfg, err := Load(written(t, map[string]string{"config.toml": "version = 3\n" + minimal + `
[plugins.'io.containerd.cri.v1.images']
snapshotter = "devmapper"
[plugins.'io.containerd.cri.v1.images'.runtime_platforms.kata-fc]
snapshotter = "devmapper"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
snapshotter = ""
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.'kata.fc']
snapshotter = "devmapper"
[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
platform = "linux/amd64"
snapshotter = "overlayfs"
[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
snapshotter = "thinsnap"
[proxy_plugins.thinsnap]
type = "snapshot"
address = "/run/thinsnap/thinsnap.sock"
[proxy_plugins.thinsnap.exports]
root = "/x"
`}))
	require.NoError(t, err)
	require.Equal(t, []Use{
		{`plugins."io.containerd.cri.v1.images".runtime_platforms.kata-fc.snapshotter`, "devmapper"},
		{`plugins."io.containerd.cri.v1.images".snapshotter`, "devmapper"},
		{`plugins."io.containerd.cri.v1.runtime".containerd.runtimes."kata.fc".snapshotter`, "devmapper"},
		{`plugins."io.containerd.transfer.v1.local".unpack_config[0].snapshotter`, "overlayfs"},
		{`plugins."io.containerd.transfer.v1.local".unpack_config[1].snapshotter`, "thinsnap"},
	}, cfg.Uses)
	require.Equal(t, map[string]Proxy{"thinsnap": {Type: "snapshot", Address: "/run/thinsnap/thinsnap.sock"}}, cfg.Proxies)
}
