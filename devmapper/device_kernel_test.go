package devmapper_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// zeroes returns a table of n sectors that needs no device below it.
func zeroes(n uint64) []devmapper.Target {
	return []devmapper.Target{{Length: n, Type: "zero"}}
}

// open returns a Control for a test that needs the kernel.
func open(t *testing.T) *devmapper.Control {
	t.Helper()
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	c, err := devmapper.Open()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

// device creates a device with a name of the test, and removes it when the test ends.
func device(t *testing.T, c *devmapper.Control, name string, targets []devmapper.Target) devmapper.Device {
	t.Helper()
	d, err := c.Activate(name, "", targets, false)
	require.NoError(t, err)
	t.Cleanup(func() {
		if err := c.Deactivate(name); !errors.Is(err, devmapper.ErrNotFound) {
			require.NoError(t, err)
		}
	})
	return d
}

func TestKernelLifeOfADevice(t *testing.T) {
	c := open(t)
	d, err := c.Create("dmlife", "THINSNAP-dmlife")
	require.NoError(t, err)
	require.Equal(t, "dmlife", d.Name)
	require.Equal(t, "THINSNAP-dmlife", d.UUID)
	require.NotZero(t, d.Major)
	require.False(t, d.Live || d.Inactive || d.Suspended)

	_, err = c.Create("dmlife", "")
	require.ErrorIs(t, err, devmapper.ErrExists, "the name")
	_, err = c.Create("dmlife2", "THINSNAP-dmlife")
	require.ErrorIs(t, err, devmapper.ErrExists, "the uuid")
	require.ErrorIs(t, err, unix.EBUSY)

	d, err = c.Load("dmlife", zeroes(16), false)
	require.NoError(t, err)
	require.True(t, d.Inactive)
	require.False(t, d.Live)
	_, err = c.Load("dmlife", []devmapper.Target{
		{Length: 16, Type: "zero"}, {Start: 16, Length: 24, Type: "error"},
	}, false)
	require.NoError(t, err)
	d, err = c.Resume("dmlife")
	require.NoError(t, err)
	require.True(t, d.Live)
	require.False(t, d.Inactive || d.Suspended || d.ReadOnly)

	byUUID, err := c.InfoByUUID("THINSNAP-dmlife")
	require.NoError(t, err)
	require.Equal(t, "dmlife", byUUID.Name)
	require.Equal(t, 2, byUUID.TargetCount)
	again, inPlaceOfName, err := c.Table(devmapper.ByUUID("THINSNAP-dmlife"))
	require.NoError(t, err)
	require.Equal(t, "dmlife", again.Name)
	require.Len(t, inPlaceOfName, 2)
	_, err = c.Info(devmapper.ByUUID("dmlife"))
	require.ErrorIs(t, err, devmapper.ErrNotFound)
	_, err = c.Create(devmapper.ByUUID("THINSNAP-new"), "")
	require.ErrorIs(t, err, unix.EINVAL, "not a name")

	_, table, err := c.Table("dmlife")
	require.NoError(t, err)
	require.Equal(t, []devmapper.Target{
		{Length: 16, Type: "zero"}, {Start: 16, Length: 24, Type: "error"},
	}, table)

	for range 2 { // a repetition does nothing
		d, err = c.Suspend("dmlife", devmapper.SuspendOptions{NoFlush: true, SkipLockFS: true})
		require.NoError(t, err)
		require.True(t, d.Suspended)
	}
	d, err = c.Resume("dmlife")
	require.NoError(t, err)
	require.False(t, d.Suspended)

	_, err = c.Load("dmlife", []devmapper.Target{{Length: 8, Type: "zero"}}, false)
	require.NoError(t, err)
	d, err = c.Exchange("dmlife", devmapper.SuspendOptions{NoFlush: true, SkipLockFS: true})
	require.NoError(t, err)
	require.False(t, d.Suspended || d.Inactive)
	_, table, err = c.Table("dmlife")
	require.NoError(t, err)
	require.Equal(t, []devmapper.Target{{Length: 8, Type: "zero"}}, table)

	deferred, err := c.Remove("dmlife", devmapper.RemoveOptions{})
	require.NoError(t, err)
	require.False(t, deferred)
	_, err = c.Remove("dmlife", devmapper.RemoveOptions{})
	require.ErrorIs(t, err, devmapper.ErrNotFound)
	_, err = c.Info("dmlife")
	require.ErrorIs(t, err, devmapper.ErrNotFound)
	require.ErrorIs(t, err, unix.ENXIO)
}

func TestKernelLoadReadOnly(t *testing.T) {
	c := open(t)
	d, err := c.Activate("dmro", "", zeroes(16), true)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Deactivate("dmro")) })
	require.True(t, d.ReadOnly)
	f, err := os.OpenFile(devmapper.NodePath("dmro"), os.O_RDWR, 0)
	if err == nil { // the open may succeed, but the write must fail
		_, err = f.Write(make([]byte, 512))
		require.NoError(t, f.Close())
	}
	require.Error(t, err)
}

func TestKernelLoadReportsMissingDevice(t *testing.T) {
	c := open(t)
	_, err := c.Load("dmnone", zeroes(16), false)
	require.ErrorIs(t, err, devmapper.ErrNotFound)

	// For a missing device in a table the kernel returns ENXIO or ENODEV.
	_, err = c.Activate("dmmissing", "", []devmapper.Target{{Length: 16, Type: "linear", Params: "259:1048575 0"}}, false)
	require.Error(t, err)
	require.NotErrorIs(t, err, devmapper.ErrNotFound)
	_, err = c.Info("dmmissing")
	require.ErrorIs(t, err, devmapper.ErrNotFound, "a failed activation leaves nothing")
}

func TestKernelDeferredRemove(t *testing.T) {
	c := open(t)
	device(t, c, "dmdefer", zeroes(16))
	f, err := os.Open(devmapper.NodePath("dmdefer"))
	require.NoError(t, err)
	d, err := c.Info("dmdefer")
	require.NoError(t, err)
	require.Equal(t, 1, d.OpenCount)

	require.ErrorIs(t, c.Deactivate("dmdefer"), devmapper.ErrBusy)
	require.FileExists(t, devmapper.NodePath("dmdefer"), "a busy device keeps its node")

	deferred, err := c.Remove("dmdefer", devmapper.RemoveOptions{Deferred: true})
	require.NoError(t, err)
	require.True(t, deferred)
	d, err = c.Info("dmdefer")
	require.NoError(t, err)
	require.True(t, d.DeferredRemove)
	require.NoError(t, devmapper.RemoveNode("dmdefer"))
	require.FileExists(t, devmapper.NodePath("dmdefer"), "a live device keeps its node")

	require.NoError(t, f.Close())
	require.Eventually(t, func() bool {
		_, err := c.Info("dmdefer")
		return errors.Is(err, devmapper.ErrNotFound)
	}, eventually, tick)
	require.ErrorIs(t, c.Deactivate("dmdefer"), devmapper.ErrNotFound)
	_, err = os.Lstat(devmapper.NodePath("dmdefer"))
	require.ErrorIs(t, err, os.ErrNotExist, "a stale node is removed")

	device(t, c, "dmdefer", zeroes(16))
	deferred, err = c.Remove("dmdefer", devmapper.RemoveOptions{Deferred: true})
	require.NoError(t, err)
	require.False(t, deferred, "removed at once, because it was not open")
	require.NoError(t, devmapper.RemoveNode("dmdefer"))
}

func TestKernelDeps(t *testing.T) {
	c := open(t)
	below := device(t, c, "dmbelow", zeroes(64))
	device(t, c, "dmabove", []devmapper.Target{{Length: 64, Type: "linear", Params: below.Number() + " 0"}})

	deps, err := c.Deps("dmabove")
	require.NoError(t, err)
	require.Equal(t, []uint64{unix.Mkdev(below.Major, below.Minor)}, deps)
	deps, err = c.Deps("dmbelow")
	require.NoError(t, err)
	require.Empty(t, deps)
	_, status, err := c.Status("dmabove", devmapper.StatusOptions{})
	require.NoError(t, err)
	require.Equal(t, []devmapper.Target{{Length: 64, Type: "linear"}}, status)
	_, err = c.Remove("dmbelow", devmapper.RemoveOptions{})
	require.ErrorIs(t, err, devmapper.ErrBusy, "used by another")
}

func TestKernelMessage(t *testing.T) {
	c := open(t)
	device(t, c, "dmmsg", zeroes(16))
	// "@" messages are for the device-mapper core, with every target.
	id, err := c.Message("dmmsg", 0, "@stats_create - 16")
	require.NoError(t, err)
	require.Equal(t, "0", id)
	list, err := c.Message("dmmsg", 0, "@stats_list")
	require.NoError(t, err)
	require.Contains(t, list, "0: 0+16 16")

	_, err = c.Message("dmmsg", 0, "no such message")
	require.ErrorIs(t, err, unix.EINVAL)
	_, err = c.Message("dmnone", 0, "x")
	require.ErrorIs(t, err, devmapper.ErrNotFound)
}

func TestKernelVersion(t *testing.T) {
	c := open(t)
	v, err := c.Version()
	require.NoError(t, err)
	require.Equal(t, uint32(4), v[0])
}

// TestKernelLongAnswers reads a list and a table that exceed the first buffer several times over.
func TestKernelLongAnswers(t *testing.T) {
	c := open(t)
	const devices, targets = 300, 3000
	uuid := strings.Repeat("u", 100)
	var want []string
	for i := range devices {
		name := fmt.Sprintf("dmlist-%s-%03d", strings.Repeat("x", 80), i)
		want = append(want, name)
		t.Cleanup(func() {
			_, err := c.Remove(name, devmapper.RemoveOptions{})
			require.NoError(t, err)
		})
		_, err := c.Create(name, fmt.Sprintf("%s%03d", uuid, i))
		require.NoError(t, err)
	}
	before := c.CallsByCommand()["list"]
	list, err := c.List()
	require.NoError(t, err)
	var got []string
	for _, d := range list {
		if strings.HasPrefix(d.Name, "dmlist-") {
			got = append(got, d.Name)
			require.Equal(t, uuid+d.Name[len(d.Name)-3:], d.UUID)
			require.NotZero(t, d.Major)
		}
	}
	require.ElementsMatch(t, want, got)
	require.Greater(t, c.CallsByCommand()["list"]-before, uint64(2), "repeated with larger buffers")

	table := make([]devmapper.Target, targets)
	for i := range table {
		table[i] = devmapper.Target{Start: uint64(i) * 8, Length: 8, Type: []string{"zero", "error"}[i%2]}
	}
	device(t, c, "dmlong", table)
	_, back, err := c.Table("dmlong")
	require.NoError(t, err)
	require.Equal(t, table, back)
}

func TestKernelTargetVersions(t *testing.T) {
	c := open(t)
	versions, err := c.TargetVersions()
	require.NoError(t, err)
	for _, target := range []string{"thin", "thin-pool"} {
		require.Equal(t, uint32(1), versions[target][0], target)
	}
}
