package disk

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/setup/journal"
)

func TestStable(t *testing.T) {
	dir := t.TempDir()
	byID := filepath.Join(dir, "by-id")
	require.NoError(t, os.Mkdir(byID, 0o755))
	for _, name := range []string{"sda", "sdb", "sdb1", "sdc"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
	}
	for name, target := range map[string]string{
		"wwn-0x5000": "sdb", "ata-DISK_1": "sdb", "ata-DISK_1-part1": "sdb1", "scsi-3500": "sda", "usb-a b": "sdc", "ata-GONE": "sdz",
	} {
		require.NoError(t, os.Symlink("../"+target, filepath.Join(byID, name)))
	}
	for device, want := range map[string]string{
		dir + "/sdb": byID + "/ata-DISK_1", dir + "/sda": byID + "/scsi-3500", byID + "/wwn-0x5000": byID + "/wwn-0x5000",
	} {
		name, stable, err := Stable(device, byID)
		require.NoError(t, err)
		require.True(t, stable)
		require.Equal(t, want, name)
	}
	name, stable, err := Stable(dir+"/sdc", byID)
	require.NoError(t, err)
	require.False(t, stable)
	require.Equal(t, dir+"/sdc", name)
	_, _, err = Stable(dir+"/sdd", byID)
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	_, _, err = Stable(byID+"/usb-a b", byID)
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
}

const device = "/dev/disk/by-id/virtio-data"

// packaged is the packaged configuration: all keys except version are commented out.
func packaged(t *testing.T) string {
	t.Helper()
	cmd := exec.Command("sed", "-E", `/^version = /!s/^[a-z_]+ = /#&/`)
	cmd.Stdin = strings.NewReader(config.DefaultFile())
	out, err := cmd.Output()
	require.NoError(t, err)
	return string(out)
}

// TestConfigure: one line is added, and the file then describes a pool on the disk.
func TestConfigure(t *testing.T) {
	whole := strings.Replace(config.DefaultFile(), "mode = \"loop\"\n", "", 1)
	for name, text := range map[string]string{
		"packaged": packaged(t), "whole": whole, "empty": "version = 1\n", "no line end": "version = 1\n[log]\nlevel = \"warn\"",
		"table": "version = 1\n[pool.direct_lvm]\nthinp_percent = \"90%\"\n[log]\nlevel = \"warn\"\n",
		"mode":  "version = 1\n[pool]\nmode = \"direct-lvm\"\n",
	} {
		path := filepath.Join(t.TempDir(), "config.toml")
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		f, err := Configure(path, device)
		require.NoError(t, err, name)
		require.Equal(t, text, string(f.Before))
		require.Contains(t, string(f.After), "device = \""+device+"\"\n")
		cfg, err := config.Parse(f.After)
		require.NoError(t, err, name)
		require.Equal(t, config.ModeDirectLVM, cfg.Pool.Mode, name)
		require.Equal(t, device, cfg.Pool.DirectLVM.Device)

		require.NoError(t, os.WriteFile(path, f.After, 0o600))
		again, err := Configure(path, device)
		require.NoError(t, err)
		require.Equal(t, again.Before, again.After)
		_, err = Configure(path, "/dev/other")
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	}
	// The configured name of the disk stays: the pool may have been made with it.
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "sdb"), nil, 0o600))
	require.NoError(t, os.Symlink("sdb", filepath.Join(dir, "by-id")))
	path := filepath.Join(dir, "config.toml")
	text := "version = 1\n[pool.direct_lvm]\ndevice = \"" + filepath.Join(dir, "sdb") + "\"\n"
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	same, err := Configure(path, filepath.Join(dir, "by-id"))
	require.NoError(t, err)
	require.True(t, same.Unchanged())

	f, err := Configure(filepath.Join(t.TempDir(), "none.toml"), device)
	require.NoError(t, err)
	require.Nil(t, f.Before)
	cfg, err := config.Parse(f.After)
	require.NoError(t, err)
	require.Equal(t, device, cfg.Pool.DirectLVM.Device)
}

func TestConfigureRefuses(t *testing.T) {
	for text, class := range map[string]error{
		"version = 1\n[pool]\nmode = \"loop\"\n":                   errdefs.ErrFailedPrecondition,
		"version = 1\n[pool.existing]\ndevice = \"vg0/pool\"\n":    errdefs.ErrFailedPrecondition,
		"version = 1\n[pool.direct_lvm]\ndevice = \"/dev/sdx\"\n":  errdefs.ErrFailedPrecondition,
		"version = 1\n[pool\n":                                     errdefs.ErrInvalidArgument,
		"version = 1\npool = { direct_lvm = { force = false } }\n": errdefs.ErrNotImplemented,
	} {
		path := filepath.Join(t.TempDir(), "config.toml")
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		_, err := Configure(path, device)
		require.ErrorIs(t, err, class, text)
		require.ErrorContains(t, err, path)
	}
}

func TestUnit(t *testing.T) {
	dir := t.TempDir()
	record, err := journal.Open(filepath.Join(dir, "records", "x.json"))
	require.NoError(t, err)
	path := filepath.Join(dir, "disk.conf")
	f, err := Unit(path, device, record, "thinsnap setup containerd")
	require.NoError(t, err)
	require.Nil(t, f.Before)
	require.Equal(t, "# Written by `thinsnap setup containerd`. `thinsnap setup containerd --undo` removes it, unless it was edited.\n"+
		"[Unit]\n"+
		`Wants=dev-disk-by\x2did-virtio\x2ddata.device`+"\n"+
		`After=lvm2-monitor.service dev-disk-by\x2did-virtio\x2ddata.device`+"\n\n[Service]\nDeviceAllow="+device+" rw\n", string(f.After))
	require.NoError(t, record.Apply([]journal.File{f}, func() error { return nil }))
	again, err := Unit(path, device, record, "thinsnap setup containerd")
	require.NoError(t, err)
	require.Equal(t, again.Before, again.After)

	require.NoError(t, os.WriteFile(path, []byte("[Service]\nDeviceAllow=/dev/sdx rw\n"), 0o600))
	_, err = Unit(path, device, record, "thinsnap setup containerd")
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.NoError(t, os.WriteFile(path, []byte("[Service]\nDeviceAllow="+device+" rw\n"), 0o600))
	by, err := Unit(path, device, record, "thinsnap setup containerd")
	require.NoError(t, err)
	require.Equal(t, by.Before, by.After)
}
