package config

import (
	"os"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/setup"
)

func TestFromContainerd(t *testing.T) {
	text, err := FromContainerd(setup.Config{
		Files: []string{"/etc/containerd/config.toml", "/etc/containerd/conf.d/a.toml"},
		Devmapper: setup.Devmapper{
			RootPath: "/var/lib/containerd/devmapper", PoolName: "fc-dev-thinpool", BaseImageSize: "8192MB", AsyncRemove: true,
			FileSystemType: "ext4", FsOptions: "nodiscard,lazy_itable_init=1", Unknown: []string{"fs_opts"},
		},
	})
	require.NoError(t, err)
	require.Equal(t, `# Converted from the section of containerd's built-in devmapper snapshotter in
# "/etc/containerd/config.toml" and its imports (1).
# root_path = "/var/lib/containerd/devmapper" has no counterpart: thinsnap's store is in root.
# "thinsnap adopt devmapper" reads the databases there, and takes over the images and containers.
# pool_name = "fc-dev-thinpool" is the pool of both. thinsnap does not use a pool with
# skip_block_zeroing: the adoption has it zero blocks. For a pool of LVM, VG/LV as
# pool.existing.device lets thinsnap activate it.
# fs_options = "nodiscard,lazy_itable_init=1" is -E of mkfs.ext4 and replaces the extended options
# of thinsnap, among them nodiscard. Other options of thinsnap stay: no blocks for root, and an
# inode for each 4KiB.
# async_remove = true has no counterpart: thinsnap always deletes removed snapshots in the
# background.
# discard_blocks = false is the default of the built-in. The default of thinsnap is true.
# "fs_opts" is ignored: the built-in has no such key.
version = 1

[pool]
mode = "existing"
discard_on_remove = false

[pool.existing]
device = "/dev/mapper/fc-dev-thinpool"

[filesystem]
type = "ext4"
base_size = "8GiB"
mkfs_options = ["-E", "nodiscard,lazy_itable_init=1"]
`, text)
	cfg, err := Parse([]byte(text))
	require.NoError(t, err)
	want := Default()
	want.Pool.Mode, want.Pool.Existing.Device = ModeExisting, "/dev/mapper/fc-dev-thinpool"
	want.Filesystem.BaseSize, want.Filesystem.MkfsOptions = 8*gib, []string{"-E", "nodiscard,lazy_itable_init=1"}
	want.Pool.DiscardOnRemove = false
	require.Equal(t, want, cfg)
}

// TestFromContainerdDiffers: a value that thinsnap does not support becomes a comment and the
// nearest supported value.
func TestFromContainerdDiffers(t *testing.T) {
	from := setup.Config{Files: []string{"f"}, Devmapper: setup.Devmapper{
		RootPath: "/r", PoolName: "p", BaseImageSize: "10GB", FileSystemType: "xfs", DiscardBlocks: true,
	}}
	for _, c := range []struct {
		change func(*setup.Config)
		lines  []string
	}{
		{func(*setup.Config) {}, []string{"type = \"xfs\"", "base_size = \"10GiB\"", "discard_on_remove = true"}},
		{func(f *setup.Config) { f.Devmapper.FileSystemType = "ext2" }, []string{
			"type = \"ext4\"", "# fs_type = \"ext2\" has no counterpart: thinsnap makes ext4.",
		}},
		{func(f *setup.Config) { f.Devmapper.FsOptions = "-b 512" }, []string{
			"# fs_options = \"-b 512\" is ignored: the built-in does not use it for xfs.",
		}},
		{func(f *setup.Config) { f.Devmapper.BaseImageSize = "100MB" }, []string{
			"base_size = \"300MiB\"", "# base_image_size = \"100MB\" is not possible: thinsnap has 300MiB.",
		}},
		{func(f *setup.Config) { f.Devmapper.BaseImageSize = "1073741825" }, []string{
			"base_size = \"1048580KiB\"", "# base_image_size = \"1073741825\" is not possible: thinsnap has 1048580KiB.",
		}},
		{func(f *setup.Config) { f.Devmapper.Disabled = true }, []string{
			"# The built-in is in disabled_plugins: containerd does not start it.",
		}},
		{func(f *setup.Config) { f.Only = "1.x" }, []string{
			"# The file and its imports are read by the rules of containerd 1.x. With other releases, the",
		}},
		{func(f *setup.Config) { f.Devmapper.Unknown = []string{"a\nroot = \"/x\""} }, []string{
			"# \"a\\nroot = \\\"/x\\\"\" is ignored: the built-in has no such key.",
		}},
	} {
		changed := from
		c.change(&changed)
		text, err := FromContainerd(changed)
		require.NoError(t, err)
		for _, line := range c.lines {
			require.Contains(t, strings.Split(text, "\n"), line)
		}
	}
}

func TestFromContainerdRefuses(t *testing.T) {
	from := setup.Config{Files: []string{"f"}, Devmapper: setup.Devmapper{
		RootPath: "/r", PoolName: "a b", BaseImageSize: "10GB", FileSystemType: "ext4",
	}}
	_, err := FromContainerd(from)
	require.ErrorContains(t, err, `pool.existing.device = "/dev/mapper/a b": must be empty, a mapped device's name or path`)
	from.Devmapper.PoolName, from.Devmapper.BaseImageSize = "a", "10000000PB"
	_, err = FromContainerd(from)
	require.ErrorContains(t, err, "base_image_size: ")
}

// FuzzFromContainerd: a section is rejected, or gives a valid configuration with its pool.
func FuzzFromContainerd(f *testing.F) {
	f.Add("/etc/containerd/config.toml", "/dm", "pool", "10GB", "ext4", "nodiscard", "key", true)
	f.Add("f", "\n", "vg-pool--1", "8191PiB", "xfs", "\"]\nroot = 'x'", "\r", false)
	f.Add("", "", "p", "-1", "ext2", "\x00", "", false)
	f.Fuzz(func(t *testing.T, file, root, pool, size, typ, options, unknown string, set bool) {
		if !utf8.ValidString(options) || !utf8.ValidString(pool) {
			t.Skip("not in TOML")
		}
		text, err := FromContainerd(setup.Config{Files: []string{file}, Devmapper: setup.Devmapper{
			RootPath: root, PoolName: pool, BaseImageSize: size, FileSystemType: typ, FsOptions: options,
			AsyncRemove: set, DiscardBlocks: set, Disabled: set, Unknown: []string{unknown},
		}})
		if err != nil {
			return
		}
		cfg, err := Parse([]byte(text))
		require.NoError(t, err)
		require.Equal(t, ModeExisting, cfg.Pool.Mode)
		require.Equal(t, "/dev/mapper/"+pool, cfg.Pool.Existing.Device)
		require.Equal(t, set, cfg.Pool.DiscardOnRemove)
		require.Equal(t, Default().Root, cfg.Root)
		if options != "" && cfg.Filesystem.Type == Ext4 {
			require.Equal(t, []string{"-E", options}, cfg.Filesystem.MkfsOptions)
		}
	})
}

// TestContainerdTable: the documentation's table has each key of the built-in's section.
func TestContainerdTable(t *testing.T) {
	page, err := os.ReadFile("../../docs/migration.md")
	require.NoError(t, err)
	_, table, found := strings.Cut(string(page), "| key of the built-in | key of thinsnap | |\n")
	require.True(t, found)
	for field := range reflect.TypeFor[setup.Devmapper]().Fields() {
		if key := field.Tag.Get("toml"); key != "-" {
			require.Contains(t, table, "\n| `"+key+"` | ")
		}
	}
}
