package pool_test

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/program"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// skipIfShort skips a test in the second run of this package, which has udevd and -short. `make
// test-all` runs it in both.
func skipIfShort(t *testing.T) {
	t.Helper()
	if testing.Short() && !dmtest.Thorough() {
		t.Skip("-short: with udevd only in make test-all")
	}
}

// newLVMSpec describes a pool on the tests' blank disk, which must be blank again when the test
// ends.
func newLVMSpec(t *testing.T) (*devmapper.Control, pool.LVMSpec) {
	t.Helper()
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	device := os.Getenv("THINSNAP_DISK0")
	require.NotEmpty(t, device, "THINSNAP_DISK0 names a disk that may be overwritten")
	control, err := devmapper.Open()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, control.Close()) })
	spec := pool.LVMSpec{
		ID: rand.Text(), Name: "lvm-test", BlockBytes: 64 << 10, Device: device, PVUUID: pool.NewPVUUID(),
		DataPercent: 50, MetadataPercent: 1, Threshold: 80, ExtendPercent: 20,
	}
	t.Cleanup(func() {
		if t.Failed() {
			_ = spec.Remove(context.Background(), nil)
			return
		}
		requireBlank(t, spec)
		require.NoFileExists(t, profile(spec))
	})
	return control, spec
}

func profile(spec pool.LVMSpec) string { return "/etc/lvm/profile/THINSNAP-" + spec.ID + ".profile" }

func command(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	require.NoError(t, err, "%v: %s", args, out)
	return string(out)
}

func requireBlank(t *testing.T, spec pool.LVMSpec) {
	t.Helper()
	require.Empty(t, command(t, "wipefs", "--noheadings", spec.Device))
	require.NotContains(t, command(t, "pvs"), spec.Device)
}

// killed runs a program and kills it in its n-th system call for I/O. It returns false if the
// program has fewer.
func killed(t *testing.T, args []string, n int) bool {
	t.Helper()
	strace := []string{"-o", "/dev/null", "-e", "trace=io_submit", "-e", fmt.Sprintf("inject=io_submit:signal=KILL:when=%d", n)}
	out, err := exec.Command("strace", append(strace, args...)...).CombinedOutput()
	if err != nil {
		require.ErrorContains(t, err, "killed", "%v: %s", args, out)
	}
	return err != nil
}

// writes runs a program, and returns which of its calls for I/O are writes: the first and the last,
// or all with dmtest.Thorough.
func writes(t *testing.T, args []string) []int {
	t.Helper()
	trace := filepath.Join(t.TempDir(), "trace")
	command(t, append([]string{"strace", "-o", trace, "-e", "trace=io_submit"}, args...)...)
	text, err := os.ReadFile(trace)
	require.NoError(t, err)
	var at []int
	for i, call := range strings.Split(string(text), "\n") {
		if strings.Contains(call, "PWRITE") {
			at = append(at, i+1)
		}
	}
	if len(at) > 2 && !dmtest.Thorough() {
		return []int{at[0], at[len(at)-1]}
	}
	return at
}

// head returns the part of the disk with LVM's own data.
func head(t *testing.T, device string) []byte {
	t.Helper()
	f, err := os.Open(device)
	require.NoError(t, err)
	defer f.Close()
	b := make([]byte, 2<<20)
	_, err = io.ReadFull(f, b)
	require.NoError(t, err)
	return b
}

// TestLVMKilled kills each program that creates or removes a pool in some of its writes, or in all
// with dmtest.Thorough.
func TestLVMKilled(t *testing.T) {
	skipIfShort(t)
	_, err := exec.LookPath("strace")
	dmtest.RequireInstalled(t, err)
	_, spec := newLVMSpec(t)
	next := func() []string {
		steps, err := spec.Plan(t.Context(), false)
		require.NoError(t, err)
		for _, step := range steps {
			if step.Args != nil {
				return step.Args
			}
			require.NoError(t, os.WriteFile(step.File, []byte(step.Content), 0o600))
		}
		return nil
	}
	// eachKilled kills the program in each of its writes, and calls then after each kill.
	eachKilled := func(args []string, then func()) {
		before := head(t, spec.Device)
		at := writes(t, args)
		require.NotEmpty(t, at)
		for _, n := range at {
			require.NoError(t, os.WriteFile(spec.Device, before, 0))
			require.True(t, killed(t, args, n))
			then()
		}
		t.Log(args[0], "was killed in its calls", at)
	}
	for _, follows := range []string{"vgcreate", "lvcreate"} {
		eachKilled(next(), func() {
			for next()[0] != follows {
				command(t, next()...)
			}
		})
	}
	// Programs that change volumes also change mapped devices, which the test cannot restore, so it
	// goes on from there.
	kills, step := make(map[string]int), 2
	if dmtest.Thorough() {
		step = 1
	}
	for args := next(); args != nil; args = next() {
		const reads = 2 // these come first
		if killed(t, args, reads+1+step*kills[args[0]]) {
			kills[args[0]]++
		}
	}
	t.Log("kills:", kills)
	require.Len(t, kills, 3)
	require.Len(t, strings.Fields(command(t, "lvs", "--noheadings", "--options", "lv_name", spec.Name)), 1, "only the pool")

	removed := func() {
		require.NoError(t, spec.Remove(t.Context(), nil))
		requireBlank(t, spec)
		require.NoDirExists(t, "/dev/"+spec.Name)
	}
	command(t, "lvremove", "--yes", spec.Name+"/pool")
	eachKilled([]string{"vgremove", "--yes", spec.Name}, removed)
	require.NoError(t, spec.Remove(t.Context(), nil))
	command(t, next()...)
	eachKilled([]string{"pvremove", "--yes", spec.Device}, removed)
}

func TestLVMPool(t *testing.T) {
	control, spec := newLVMSpec(t)
	ctx := t.Context()
	made, err := spec.Create(ctx, false)
	require.NoError(t, err)
	steps, err := spec.Plan(ctx, false)
	require.NoError(t, err)
	require.Empty(t, steps, "nothing is created twice")
	p, err := made.Open(ctx, control, false)
	require.NoError(t, err)
	require.Equal(t, "lvm--test-pool", p.Name())
	require.Equal(t, []string{spec.Device}, backing(t, p).DataDisks)
	require.Equal(t, []string{spec.Device}, backing(t, p).MetadataDisks)
	require.NoError(t, p.CreateThin(ctx, 1))
	require.NoError(t, p.SetTransactionID(ctx, 0, 7))
	vol, err := p.Activate(ctx, 1, volumeBytes, false)
	require.NoError(t, err)
	require.Equal(t, "/dev/mapper/lvm-test-snap-1", vol.Path)
	require.NoError(t, os.WriteFile(vol.Path, make([]byte, 1<<20), 0o600))
	require.NoError(t, p.Flush(ctx, 1))
	out, err := exec.Command("vgchange", "-an", spec.Name).CombinedOutput()
	require.Error(t, err, "while a volume is active: %s", out)
	// Its transaction id tells LVM that the pool's volumes are foreign.
	out, err = exec.Command("lvcreate", "--yes", "-V", "100M", "--name", "mine", "--thinpool", "pool", spec.Name).CombinedOutput()
	require.Error(t, err, "%s", out)
	_, _, err = pool.ExistingSpec{ID: "other", Name: "other", Device: spec.Name + "/pool"}.Open(ctx, control)
	require.ErrorIs(t, err, pool.ErrWrongPool, "the pool belongs to another root")

	before, err := p.Status(ctx)
	require.NoError(t, err)
	require.NoError(t, p.Extend(ctx, before.Data.Total+1<<30, before.Metadata.Total+8<<20))
	after, err := p.Status(ctx)
	require.NoError(t, err)
	require.Equal(t, before.Data.Total+1<<30, after.Data.Total)
	require.Equal(t, before.Metadata.Total+8<<20, after.Metadata.Total)
	require.NoError(t, p.Extend(ctx, 1<<30, 1<<20), "the pool is already larger")
	largest, largestMetadata, err := p.Largest(ctx)
	require.NoError(t, err)
	require.Equal(t, largest-after.Data.Total, largestMetadata-after.Metadata.Total)
	require.ErrorContains(t, p.Extend(ctx, largest+1<<30, 0), "nsufficient")
	require.NoError(t, p.Extend(ctx, largest-1<<30, 0))
	full, err := p.Status(ctx)
	require.NoError(t, err)
	require.Equal(t, largest-1<<30, full.Data.Total)

	// As if LVM was killed while it extended the pool.
	_, err = control.Suspend(p.Name(), devmapper.SuspendOptions{})
	require.NoError(t, err)
	again, err := made.Open(ctx, control, true)
	require.NoError(t, err)
	dev, err := control.Info(p.Name())
	require.NoError(t, err)
	require.False(t, dev.Suspended)
	require.Equal(t, backing(t, p), backing(t, again))
	require.ErrorContains(t, made.ReadMetadata(ctx, nil), "active")
	require.NoError(t, again.Close(ctx))
	_, err = made.OpenLoaded(control)
	require.ErrorIs(t, err, devmapper.ErrNotFound)

	// As after a restart of the host, and after a kill during a check.
	require.NoError(t, made.ReadMetadata(ctx, func(m *thinmeta.Metadata) error {
		require.EqualValues(t, 7, m.Superblock().TransactionID)
		for d, err := range m.Devices(ctx) {
			require.NoError(t, err)
			require.EqualValues(t, 1, d.ID)
			require.EqualValues(t, 16, d.MappedBlocks)
		}
		return nil
	}))
	command(t, "lvchange", "--yes", "-ay", spec.Name+"/pool_tmeta")
	require.NoError(t, os.Remove(profile(spec)))
	p, err = made.Open(ctx, control, true)
	require.NoError(t, err)
	require.FileExists(t, profile(spec))
	_, err = p.Activate(ctx, 1, volumeBytes, false)
	require.NoError(t, err)
	mapped, err := p.Mapped(ctx, 1)
	require.NoError(t, err)
	require.EqualValues(t, 1<<20, mapped)
	require.NoError(t, p.Close(ctx))

	other := made
	other.LVUUID = pool.NewPVUUID()
	_, err = other.Open(ctx, control, true)
	require.ErrorIs(t, err, pool.ErrWrongPool)
	require.NoError(t, other.Remove(ctx, nil))
	require.Contains(t, command(t, "lvs", "--noheadings", spec.Name), "pool", "the spec of another pool removes nothing")

	// A foreign volume in the volume group remains.
	command(t, "lvcreate", "--yes", "--size", "64M", "--name", "mine", spec.Name)
	require.NoError(t, made.Remove(ctx, nil))
	require.Contains(t, command(t, "lvs", "--noheadings", spec.Name), "mine")
	require.NotContains(t, command(t, "lvs", "--noheadings", spec.Name), "pool")
	command(t, "lvremove", "--yes", spec.Name+"/mine")
	require.NoError(t, made.Remove(ctx, nil))
	requireBlank(t, spec)
	require.NoError(t, made.Remove(ctx, nil), "again")
	_, err = made.Open(ctx, control, true)
	require.ErrorIs(t, err, pool.ErrWrongPool)
}

// TestLVMPoolWithForeignVolumes: LVM creates volumes in the pool before thinsnap uses it.
func TestLVMPoolWithForeignVolumes(t *testing.T) {
	skipIfShort(t)
	_, spec := newLVMSpec(t)
	ctx := t.Context()
	made, err := spec.Create(ctx, false)
	require.NoError(t, err)
	command(t, "lvcreate", "--yes", "-V", "100M", "--name", "mine", "--thinpool", "pool", spec.Name)
	err = made.Remove(ctx, nil)
	require.ErrorIs(t, err, pool.ErrDeviceTaken)
	require.ErrorContains(t, err, "lvm-test/mine")
	renamed := made
	renamed.Name = "lvm-other"
	require.ErrorIs(t, renamed.Remove(ctx, nil), pool.ErrWrongPool)
	require.Contains(t, command(t, "lvs", "--noheadings", spec.Name), "mine")
	command(t, "lvremove", "--yes", spec.Name+"/mine")
	require.NoError(t, made.Remove(ctx, nil))
}

// TestRemoveFromSeveralDisks: the labels of disks that were added are removed too, but only while
// LVM has them in the pool's own group.
func TestRemoveFromSeveralDisks(t *testing.T) {
	skipIfShort(t)
	_, spec := newLVMSpec(t)
	spec.DataPercent = 5 // pvmove copies all of it
	other := os.Getenv("THINSNAP_DISK1")
	labelled := func(disk string) bool {
		return command(t, "pvs", "--noheadings", "--options", "pv_name", "--select", "pv_name="+disk) != ""
	}
	blank := pool.LVMSpec{Device: other}
	for name, test := range map[string]struct {
		change func(t *testing.T)
		stays  bool // the label of the other disk
	}{
		"added": {func(*testing.T) {}, false},
		"replaced": {func(t *testing.T) {
			command(t, "pvmove", "--interval", "1", spec.Device)
			command(t, "vgreduce", spec.Name, spec.Device)
			command(t, "pvremove", spec.Device)
		}, false},
		"replaced, and the label stayed": {func(t *testing.T) {
			command(t, "pvmove", "--interval", "1", spec.Device)
			command(t, "vgreduce", spec.Name, spec.Device)
		}, false},
		"removed from the group": {func(t *testing.T) { command(t, "vgreduce", spec.Name, other) }, true},
		"in another group": {func(t *testing.T) {
			command(t, "vgreduce", spec.Name, other)
			command(t, "vgcreate", "--yes", "foreign", other)
		}, true},
		"in another group, and of the same tag": {func(t *testing.T) {
			command(t, "vgreduce", spec.Name, other)
			command(t, "vgcreate", "--yes", "--addtag", "THINSNAP-"+spec.ID, "foreign", other)
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			made, err := spec.Create(ctx, false)
			require.NoError(t, err)
			command(t, "vgextend", "--yes", spec.Name, other)
			test.change(t)
			require.NoError(t, made.Remove(ctx, nil))
			requireBlank(t, spec)
			require.NoError(t, made.Remove(ctx, nil), "again")
			detached := made
			detached.Device = "/dev/missing"
			require.ErrorContains(t, detached.Remove(ctx, nil), "if they are lost or the group was removed, remove the root directory")
			require.Equal(t, test.stays, labelled(other))
			if !test.stays {
				requireBlank(t, blank)
				return
			}
			if strings.Contains(command(t, "vgs", "--noheadings", "--options", "vg_name"), "foreign") {
				command(t, "vgremove", "--yes", "foreign")
			}
			command(t, "pvremove", "--yes", other)
		})
	}
}

// TestChangesDuringRemoval: while the pool is removed, someone else uses the group or its disks.
func TestChangesDuringRemoval(t *testing.T) {
	skipIfShort(t)
	_, spec := newLVMSpec(t)
	other := os.Getenv("THINSNAP_DISK1")
	vgremove, err := exec.LookPath("vgremove")
	require.NoError(t, err)
	for name, test := range map[string]struct {
		before, after string // commands before and after thinsnap's vgremove
		require       func(t *testing.T)
	}{
		"a volume is created": {"lvcreate --yes --size 64M --name mine " + spec.Name, "", func(t *testing.T) {
			require.Equal(t, "mine", strings.TrimSpace(command(t, "lvs", "--noheadings", "--options", "lv_name", spec.Name)))
			require.Equal(t, 2, strings.Count(command(t, "pvs", "--noheadings", "--select", "vg_name="+spec.Name), "\n"), "the labels stay")
			command(t, "vgremove", "--yes", spec.Name)
			command(t, "pvremove", spec.Device, other)
		}},
		"an added disk gets another group": {"", "vgcreate --yes foreign " + other, func(t *testing.T) {
			requireBlank(t, spec)
			command(t, "vgremove", "--yes", "foreign")
			command(t, "pvremove", other)
		}},
		"the disk gets another group": {"", "vgcreate --yes foreign " + spec.Device, func(t *testing.T) {
			requireBlank(t, pool.LVMSpec{Device: other})
			command(t, "vgremove", "--yes", "foreign")
			command(t, "pvremove", spec.Device)
		}},
		"another disk has its name": {"", "pvremove --yes " + other + " && pvcreate --yes " + other, func(t *testing.T) {
			requireBlank(t, spec)
			command(t, "pvremove", other)
		}},
		"a disk is detached": {"", "wipefs --all --quiet " + other + " && mkfs.ext4 -q -E nodiscard,lazy_itable_init=1 " + other, func(t *testing.T) {
			requireBlank(t, spec)
			require.Contains(t, command(t, "wipefs", "--noheadings", other), "ext4")
			command(t, "wipefs", "--all", "--quiet", other)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			made, err := spec.Create(t.Context(), false)
			require.NoError(t, err)
			command(t, "vgextend", "--yes", spec.Name, other)
			dir := t.TempDir()
			script := "#!/bin/sh\nset -e\nexport PATH=$PATH:/usr/sbin:/sbin\n" + test.before + "\n" + vgremove + " \"$@\"\n" + test.after + "\n"
			require.NoError(t, os.WriteFile(filepath.Join(dir, "vgremove"), []byte(script), 0o700))
			ctx := program.WithDirectories(t.Context(), append([]string{dir}, program.Directories()...)...)
			require.NoError(t, made.Remove(ctx, nil))
			test.require(t)
		})
	}
}

// writePartitionTable writes a table with one partition, as sfdisk does.
func writePartitionTable(t *testing.T, device string) {
	t.Helper()
	sector := make([]byte, 512)
	sector[446+4] = 0x83
	binary.LittleEndian.PutUint32(sector[446+8:], 2048)
	binary.LittleEndian.PutUint32(sector[446+12:], 1<<20)
	sector[510], sector[511] = 0x55, 0xaa
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.Write(sector)
	require.NoError(t, err)
	require.NoError(t, f.Sync())
	require.NoError(t, f.Close())
}

func TestLVMRefusesADiskThatIsNotFree(t *testing.T) {
	skipIfShort(t)
	_, spec := newLVMSpec(t)
	ctx := t.Context()
	refused := func(force bool, with error, text string) {
		t.Helper()
		_, err := spec.Create(ctx, force)
		require.ErrorIs(t, err, with)
		require.ErrorContains(t, err, text)
	}
	command(t, "mkfs.ext4", "-q", "-E", "nodiscard,lazy_itable_init=1", spec.Device)
	refused(false, pool.ErrDeviceTaken, "is not empty (ext4)")
	dir := t.TempDir()
	command(t, "mount", spec.Device, dir)
	refused(true, pool.ErrDeviceTaken, "it is mounted")
	require.NoError(t, unix.Unmount(dir, 0))
	command(t, "wipefs", "--all", "--quiet", spec.Device)

	command(t, "pvcreate", "--yes", spec.Device)
	refused(false, pool.ErrDeviceTaken, "is not empty (LVM2_member)")
	command(t, "vgcreate", "--yes", "foreign", spec.Device)
	refused(true, pool.ErrDeviceTaken, "is in the volume group foreign")
	require.NoError(t, spec.Remove(ctx, nil), "nothing to remove")
	command(t, "vgremove", "--yes", "foreign")
	command(t, "pvremove", "--yes", spec.Device)

	writePartitionTable(t, spec.Device)
	refused(false, pool.ErrDeviceTaken, "is not empty (dos)")
	steps, err := spec.Plan(ctx, true)
	require.NoError(t, err)
	require.Equal(t, "wipefs --all --quiet "+spec.Device, steps[0].String())
	command(t, steps[0].Args...)
	command(t, steps[1].Args...)
	steps, err = spec.Plan(ctx, false)
	require.NoError(t, err, "the creation continues")
	require.Equal(t, "vgcreate", steps[0].Args[0])

	spec.Device = filepath.Join(dir, "none")
	refused(true, os.ErrNotExist, "none")
	spec.Device = dir
	refused(true, unix.ENOTBLK, dir)
	spec.Device = os.Getenv("THINSNAP_DISK0")
	require.NoError(t, spec.Remove(ctx, nil))
	requireBlank(t, spec)
}
