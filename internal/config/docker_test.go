package config

import (
	"os"
	"strings"
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
	require.Equal(t, `# Converted from the options of the devicemapper driver in Docker's daemon.json.
# dm.use_deferred_removal=true is ignored: it is always on in thinsnap.
version = 1

[pool]
block_size = "512K"
min_free_space = "5%"
autoextend_threshold = "70%"
discard_on_remove = false

[pool.direct_lvm]
device = "/dev/xdf"
thinp_percent = "90%"
thinp_metapercent = "2%"
force = true

[filesystem]
type = "xfs"
base_size = "20G"
mkfs_options = ["-i", "size=512"]
mount_options = ["noatime", "nodev"]
`, text)
	cfg, err := Parse([]byte(text))
	require.NoError(t, err)
	require.Equal(t, ModeDirectLVM, cfg.Pool.Mode)
}

func TestFromDockerRefuses(t *testing.T) {
	for text, want := range map[string]string{
		`{`:                             "read Docker's configuration",
		`{"storage-driver":"overlay2"}`: `the storage driver is "overlay2"`,
		`{"storage-opts":["dm.datadev=/dev/sdx"]}`:                           "dm.datadev has no counterpart",
		`{"storage-opts":["dm.unheard=of"]}`:                                 `unknown storage option "dm.unheard"`,
		`{"storage-opts":["dm.thinp_percent=many"]}`:                         "line ",
		`{"storage-opts":["dm.blocksize=1K"]}`:                               "pool.block_size",
		`{"storage-opts":["dm.thinp_percent=1\nroot = \"/x\""]}`:             "line ",
		`{"storage-opts":["dm.thinpooldev=/dev/dm/3/4"]}`:                    "pool.existing.device",
		`{"storage-opts":["dm.thinpooldev=p","dm.directlvm_device=/dev/x"]}`: "pool.existing.device is set",
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

// TestFromDockerRepeated: list options are joined, as in Docker. Of other options Docker takes the
// last value; FromDocker rejects them.
func TestFromDockerRepeated(t *testing.T) {
	text, err := FromDocker([]byte(`{"storage-opts":[
  "dm.mkfsarg=-i", "dm.mountopt=noatime,nodev", "dm.fs=ext4", "dm.mkfsarg=8192", "DM.FS= ext4", "dm.mountopt=discard",
  "dm.use_deferred_removal=true", "dm.use_deferred_removal=true"
]}`))
	require.NoError(t, err)
	require.Contains(t, text, `[filesystem]
type = "ext4"
mkfs_options = ["-i", "8192"]
mount_options = ["noatime", "nodev", "discard"]
`)
	require.Equal(t, 1, strings.Count(text, "dm.use_deferred_removal"))
	for _, options := range []string{
		`"dm.basesize=10G","dm.basesize=20G"`, `"dm.use_deferred_removal=true","dm.use_deferred_removal=false"`,
	} {
		_, err := FromDocker([]byte(`{"storage-opts":[` + options + `]}`))
		name, _, _ := strings.Cut(strings.TrimPrefix(options, `"`), "=")
		require.ErrorContains(t, err, "the storage option "+name+" is given as ")
	}
}

// TestFromDockerPercent: Docker accepts percentages with and without the sign.
func TestFromDockerPercent(t *testing.T) {
	for name, key := range map[string]string{
		"dm.thinp_percent": "\nthinp_percent = \"90%\"\n", "dm.thinp_metapercent": "\nthinp_metapercent = \"2%\"\n",
		"dm.thinp_autoextend_threshold": "\nautoextend_threshold = \"70%\"\n", "dm.thinp_autoextend_percent": "\nautoextend_percent = \"30%\"\n",
	} {
		value := strings.Trim(key[strings.Index(key, "=")+1:], " \"%\n")
		for _, sign := range []string{"", "%"} {
			text, err := FromDocker([]byte(`{"storage-opts":["dm.directlvm_device=/dev/xdf","` + name + "=" + value + sign + `"]}`))
			require.NoError(t, err)
			require.Contains(t, text, key)
		}
		_, err := FromDocker([]byte(`{"storage-opts":["` + name + "=" + value + `%%"]}`))
		require.Error(t, err, "one sign is enough")
		_, err = FromDocker([]byte(`{"storage-opts":["` + name + `=%"]}`))
		require.EqualError(t, err, "the storage option "+name+" has no value")
	}
}

// TestDockerTable: the documentation's table has each option and its key.
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
