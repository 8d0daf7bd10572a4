package config

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFromDocker(t *testing.T) {
	text, err := FromDocker([]byte(`{
  "data-root": "/srv/docker",
  "storage-driver": "devicemapper",
  "storage-opts": [
    "dm.directlvm_device=/dev/xdf", "dm.thinp_percent=90", "dm.thinp_metapercent=2", "dm.directlvm_device_force=true",
    "dm.thinp_autoextend_threshold=70", "dm.basesize=20G", "dm.fs=xfs", "dm.mkfsarg=-i size=512", "dm.mountopt=noatime,nodev",
    "dm.blocksize=512K", "dm.min_free_space=5%", "dm.blkdiscard=false", "dm.use_deferred_removal=true"
  ]
}`))
	require.NoError(t, err)
	require.Equal(t, `# What Docker's daemon.json says of the devicemapper driver, in thinsnap's words.
# dm.use_deferred_removal=true is left out: it is always so here.
version = 1

[pool]
block_size = "512K"
min_free_space = "5%"
autoextend_threshold = 70

[pool.direct_lvm]
device = "/dev/xdf"
thinp_percent = 90
thinp_metapercent = 2
force = true

[filesystem]
type = "xfs"
base_size = "20G"
mkfs_options = ["-i", "size=512"]
mount_options = ["noatime", "nodev"]

[remove]
discard = false
`, text)
	cfg, err := Parse([]byte(text))
	require.NoError(t, err)
	require.Equal(t, ModeDirectLVM, cfg.Pool.Mode)
}

func TestFromDockerRefuses(t *testing.T) {
	for text, want := range map[string]string{
		`{`:                             "read Docker's configuration",
		`{"storage-driver":"overlay2"}`: `the storage driver is "overlay2"`,
		`{"storage-opts":["dm.datadev=/dev/sdx"]}`:                           "dm.datadev has no equal",
		`{"storage-opts":["dm.unheard=of"]}`:                                 `"dm.unheard" is none of`,
		`{"storage-opts":["dm.thinp_percent=many"]}`:                         "line ",
		`{"storage-opts":["dm.blocksize=1K"]}`:                               "pool.block_size",
		`{"storage-opts":["dm.thinp_percent=1\nroot = \"/x\""]}`:             "line ",
		`{"storage-opts":["dm.thinpooldev=/dev/dm/3/4"]}`:                    "pool.existing.device",
		`{"storage-opts":["dm.thinpooldev=p","dm.directlvm_device=/dev/x"]}`: "pool.existing.device names a pool",
	} {
		_, err := FromDocker([]byte(text))
		require.ErrorContains(t, err, want, text)
	}
	text, err := FromDocker([]byte(`{"storage-opts":["dm.thinpooldev=/dev/mapper/docker-thinpool"]}`))
	require.NoError(t, err)
	cfg, err := Parse([]byte(text))
	require.NoError(t, err)
	require.Equal(t, ModeExisting, cfg.Pool.Mode)
	require.Equal(t, "/dev/mapper/docker-thinpool", cfg.Pool.Existing.Device)
	text, err = FromDocker([]byte(`{}`))
	require.NoError(t, err)
	cfg, err = Parse([]byte(text))
	require.NoError(t, err)
	require.Equal(t, Default(), cfg)
}

// TestDockerTable: each option is in the table of the documentation, with its key.
func TestDockerTable(t *testing.T) {
	table, err := os.ReadFile("../../docs/migration.md")
	require.NoError(t, err)
	for name, option := range dockerOptions() {
		if option.key != "" {
			require.Contains(t, string(table), "| `"+name+"` | `"+option.key+"` |")
			require.NotPanics(t, func() { defaultOf(option.key) })
		} else {
			require.Contains(t, string(table), "| `"+name+"` | none |")
		}
	}
}
