package daemon

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/program"
	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/check"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/provision"
	"github.com/thinsnap/thinsnap/internal/rootdir"
	"github.com/thinsnap/thinsnap/metadata"
)

// onDisk returns the configuration of a pool on the tests' blank disk.
func onDisk(t *testing.T) config.Config {
	t.Helper()
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	device := os.Getenv("THINSNAP_DISK0")
	require.NotEmpty(t, device, "THINSNAP_DISK0 names a disk that may be overwritten")
	c := config.Default()
	c.Root = filepath.Join(t.TempDir(), "root")
	c.Pool.Mode, c.Pool.Name, c.Pool.DirectLVM.Device = config.ModeDirectLVM, "on-disk", device
	c.Filesystem.BaseSize = 64 << 20
	return c
}

func TestDirectLVM(t *testing.T) {
	c := onDisk(t)
	ctx := t.Context()
	lines, err := PlanPool(ctx, c)
	require.NoError(t, err)
	require.Len(t, lines, 7)
	require.NoDirExists(t, c.Root)

	// A crash interrupts the creation.
	broken := filepath.Join(t.TempDir(), "lvconvert")
	require.NoError(t, os.WriteFile(broken, []byte("#!/bin/sh\necho not today >&2\nexit 1\n"), 0o700))
	_, err = Open(program.WithDirectories(ctx, append([]string{filepath.Dir(broken)}, program.Directories()...)...), c)
	require.ErrorContains(t, err, "not today")
	require.NoError(t, os.Remove(broken))
	lines, err = PlanPool(ctx, c)
	require.NoError(t, err)
	require.Len(t, lines, 3, "the remaining steps")
	require.Regexp(t, "^lvconvert ", lines[0])

	d, err := Open(ctx, c)
	require.NoError(t, err)
	destroyed := false
	defer func() {
		if !destroyed {
			destroy(t, c)
		}
	}()
	require.Equal(t, "/dev/mapper/on-disk-snap-1", d.pool.VolumePath(1))
	ids := layers(t, d, "one", "two")
	kinds, _ := findings(t, d, false)
	require.Empty(t, kinds)
	info, err := d.Info(ctx)
	require.NoError(t, err)
	require.Equal(t, "on--disk-pool", info.Pool.Name)
	require.Equal(t, "direct-lvm", info.Pool.Mode)
	require.Greater(t, info.Pool.Data.Total, uint64(18<<30))
	inspection, err := d.Inspect(ctx, "two")
	require.NoError(t, err)
	data := inspection.Device.Below[0].Below[0]
	require.Equal(t, admin.RoleData, data.Role)
	require.Equal(t, []admin.Device{{Role: admin.RoleDisk, Path: c.Pool.DirectLVM.Device, Active: true}}, data.Below)
	require.NoError(t, d.Close())

	_, err = CreatePool(ctx, c)
	require.ErrorIs(t, err, errdefs.ErrAlreadyExists)
	_, err = PlanPool(ctx, c)
	require.ErrorIs(t, err, errdefs.ErrAlreadyExists)
	for want, change := range map[string]func(*config.Config){
		"pool.mode is loop in the configuration, but the pool was made with direct-lvm": func(c *config.Config) { c.Pool.Mode = config.ModeLoop },
		"pool.name is other":                     func(c *config.Config) { c.Pool.Name = "other" },
		"pool.block_size":                        func(c *config.Config) { c.Pool.BlockSize *= 2 },
		"pool.direct_lvm.device is /dev/other":   func(c *config.Config) { c.Pool.DirectLVM.Device = "/dev/other" },
		"pool.direct_lvm.thinp_percent is 90":    func(c *config.Config) { c.Pool.DirectLVM.ThinpPercent = 90 },
		"pool.direct_lvm.thinp_metapercent is 2": func(c *config.Config) { c.Pool.DirectLVM.ThinpMetapercent = 2 },
	} {
		changed := c
		change(&changed)
		_, err := Open(ctx, changed)
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		require.ErrorContains(t, err, want)
	}

	// After a reboot.
	name := d.pool.VolumeName(ids[1])
	deactivate(t)
	r, err := CheckRoot(ctx, c, false)
	require.NoError(t, err)
	require.Empty(t, r.Findings)
	require.Equal(t, 3, r.Examined.Volumes, "two layers and the base volume, of a pool that is not loaded")

	d, err = Open(ctx, c)
	require.NoError(t, err)
	mounts, err := d.snapshotter.View(ctx, "look", "two")
	require.NoError(t, err)
	require.Equal(t, devmapper.NodePath(name), mounts[0].Source)
	require.NoError(t, mount.WithTempMount(ctx, mounts, func(dir string) error {
		require.FileExists(t, filepath.Join(dir, "one"))
		require.FileExists(t, filepath.Join(dir, "two"))
		return nil
	}))
	require.NoError(t, d.Close())

	repairByLVM(t, c)

	// The volume group is identified by its UUID.
	run(t, "vgrename", "on-disk", "elsewhere")
	d, err = Open(ctx, c)
	require.NoError(t, err)
	require.NoError(t, d.Close())
	deactivate(t)
	d, err = Open(ctx, c)
	require.NoError(t, err)
	require.NoError(t, d.Close())
	require.ErrorIs(t, DestroyPool(ctx, c), errdefs.ErrFailedPrecondition)
	run(t, "vgrename", "elsewhere", "on-disk")

	// If the volume group is not on its disk, the pool is missing, and no other one is created.
	deactivate(t)
	disk, err := os.OpenFile(c.Pool.DirectLVM.Device, os.O_RDWR, 0)
	require.NoError(t, err)
	defer disk.Close()
	label := make([]byte, 4096)
	_, err = disk.ReadAt(label, 0)
	require.NoError(t, err)
	_, err = disk.WriteAt(make([]byte, len(label)), 0)
	require.NoError(t, errors.Join(err, disk.Sync()))
	_, err = Open(ctx, c)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	r, err = CheckRoot(ctx, c, false)
	require.NoError(t, err)
	require.Equal(t, check.KindPool, r.Findings[0].Kind)
	_, err = disk.WriteAt(label, 0)
	require.NoError(t, errors.Join(err, disk.Sync()))

	destroy(t, c)
	destroyed = true
	require.Empty(t, run(t, "wipefs", "--noheadings", c.Pool.DirectLVM.Device))
}

// deactivate removes the volumes and then the pool from the kernel.
func deactivate(t *testing.T) {
	t.Helper()
	for line := range strings.Lines(run(t, "dmsetup", "ls")) {
		if name, _, _ := strings.Cut(line, "\t"); strings.HasPrefix(name, "on-disk-snap-") {
			run(t, "dmsetup", "remove", name)
		}
	}
	run(t, "vgchange", "--activate", "n")
}

// run returns what a command writes to its standard output. LVM's programs warn of devices that are removed meanwhile.
func run(t *testing.T, args ...string) string {
	t.Helper()
	var warnings bytes.Buffer
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stderr = &warnings
	out, err := cmd.Output()
	require.NoError(t, err, "%v: %s%s", args, out, warnings.String())
	return string(out)
}

// repairByLVM marks a pool's metadata needs_check, and runs the commands that thinsnap prints.
func repairByLVM(t *testing.T, c config.Config) {
	ctx := t.Context()
	report, err := CheckPool(ctx, c)
	require.NoError(t, err)
	require.True(t, report.Good(), report)
	require.Equal(t, 3, report.Volumes)
	require.NotContains(t, run(t, "dmsetup", "ls"), "on--disk", "it is removed from the kernel")
	// LVM activates the metadata read-only, so write to the disk below.
	run(t, "lvchange", "--yes", "--activate", "y", "on-disk/pool_tmeta")
	var start int64
	_, err = fmt.Sscanf(strings.Fields(run(t, "dmsetup", "table", "on--disk-pool_tmeta"))[4], "%d", &start)
	require.NoError(t, err)
	run(t, "lvchange", "--yes", "--activate", "n", "on-disk/pool_tmeta")
	disk, err := os.OpenFile(c.Pool.DirectLVM.Device, os.O_RDWR|os.O_SYNC, 0)
	require.NoError(t, err)
	superblock := make([]byte, 4096)
	_, err = disk.ReadAt(superblock, start*512)
	require.NoError(t, err)
	superblock[4] |= 1 // THIN_METADATA_NEEDS_CHECK_FLAG, and SUPERBLOCK_CSUM_XOR
	binary.LittleEndian.PutUint32(superblock, ^crc32.Checksum(superblock[4:], crc32.MakeTable(crc32.Castagnoli))^160774)
	_, err = disk.WriteAt(superblock, start*512)
	require.NoError(t, errors.Join(err, disk.Close()))
	report, err = CheckPool(ctx, c)
	require.NoError(t, err)
	require.True(t, report.NeedsCheck)
	require.False(t, report.Damaged(), report)

	_, err = RepairPool(ctx, c, 0, always)
	require.ErrorIs(t, err, errdefs.ErrNotImplemented)
	_, commands, _ := strings.Cut(err.Error(), "repair it with `")
	commands, _, _ = strings.Cut(commands, "`")
	t.Log(run(t, "sh", "-c", commands))
	report, err = CheckPool(ctx, c)
	require.NoError(t, err)
	require.True(t, report.Good(), report)
	require.Equal(t, 3, report.Volumes)
	d, err := Open(ctx, c)
	require.NoError(t, err)
	requireLayers(t, d, "two", "one", "two")
	layers(t, d, "three")
	require.NoError(t, d.Close())
	run(t, "lvremove", "--yes", "on-disk/pool_mended")
}

// TestReplacedDisk: an administrator moves the pool to another disk.
func TestReplacedDisk(t *testing.T) {
	c := onDisk(t)
	c.Pool.DirectLVM.ThinpPercent = 5
	ctx, device, other := t.Context(), c.Pool.DirectLVM.Device, os.Getenv("THINSNAP_DISK1")
	command := func(args ...string) string {
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		require.NoError(t, err, "%v: %s", args, out)
		return string(out)
	}
	d, err := Open(ctx, c)
	require.NoError(t, err)
	destroyed := false
	defer func() {
		if !destroyed {
			destroy(t, c)
		}
	}()
	layers(t, d, "one")
	require.NoError(t, d.Close())
	command("vgextend", "--yes", c.Pool.Name, other)
	disks, missing, err := pool.GroupDisks(ctx, c.Pool.Name)
	require.NoError(t, err)
	require.False(t, missing)
	require.ElementsMatch(t, []string{device, other}, disks)
	command("pvmove", "--interval", "1", device)
	command("vgreduce", c.Pool.Name, device)
	command("pvremove", device)

	// The old disk is still attached, and may have another use.
	store, err := metadata.Open(rootdir.Store(c.Root), metadata.Options{ReadOnly: true})
	require.NoError(t, err)
	lines, err := provision.Plan(ctx, store, c)
	require.NoError(t, store.Close())
	require.NoError(t, err)
	require.Empty(t, lines)
	disks, _, err = pool.GroupDisks(ctx, c.Pool.Name)
	require.NoError(t, err)
	require.Equal(t, []string{other}, disks)
	d, err = Open(ctx, c)
	require.NoError(t, err)
	layers(t, d, "two")
	require.NoError(t, d.Close())

	failing := func(name string) context.Context {
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\necho not today >&2\nexit 1\n"), 0o700))
		return program.WithDirectories(ctx, append([]string{dir}, program.Directories()...)...)
	}
	begun := filepath.Join(c.Root, "destroying")
	require.ErrorContains(t, DestroyPool(failing("lvremove"), c), "not today")
	require.NoFileExists(t, begun)

	// While the new disk is detached, nothing shows that the pool is lost.
	disk, err := os.OpenFile(other, os.O_RDWR, 0)
	require.NoError(t, err)
	defer disk.Close()
	deactivate(t)
	label := make([]byte, 4096)
	_, err = disk.ReadAt(label, 0)
	require.NoError(t, err)
	_, err = disk.WriteAt(make([]byte, len(label)), 0)
	require.NoError(t, errors.Join(err, disk.Sync()))
	err = DestroyPool(ctx, c)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "LVM finds no volume group "+c.Pool.Name)
	require.FileExists(t, rootdir.Store(c.Root))
	require.NoFileExists(t, begun)
	_, err = disk.WriteAt(label, 0)
	require.NoError(t, errors.Join(err, disk.Sync()))
	d, err = Open(ctx, c)
	require.NoError(t, err)
	require.NoError(t, d.Close())

	// The group without the pool's volumes belongs to a destruction that was interrupted, and is repeated.
	require.ErrorContains(t, DestroyPool(failing("vgremove"), c), "not today")
	require.FileExists(t, begun)

	// A destruction is interrupted after the group is removed, and repeated.
	require.ErrorContains(t, DestroyPool(failing("pvremove"), c), "not today")
	require.Empty(t, command("vgs", "--noheadings"))
	require.FileExists(t, begun)
	require.NoError(t, DestroyPool(ctx, c))
	destroyed = true
	require.NoFileExists(t, rootdir.Store(c.Root))
	require.NoFileExists(t, begun)
	require.Empty(t, command("wipefs", "--noheadings", device))
	// Nothing shows any more that the label of the new disk is thinsnap's.
	command("pvremove", other)
}
