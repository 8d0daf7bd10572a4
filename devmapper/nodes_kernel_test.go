package devmapper_test

import (
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
)

const (
	eventually = 5 * time.Second
	tick       = 5 * time.Millisecond
)

func TestKernelActivateMakesItsNode(t *testing.T) {
	c := open(t)
	before := c.Calls()
	d, err := c.Activate("dmnode", "", zeroes(16), false)
	require.NoError(t, err)
	require.Equal(t, uint64(3), c.Calls()-before, "create, load, resume")

	link, err := os.Readlink("/dev/mapper/dmnode")
	require.NoError(t, err)
	require.Equal(t, "../dm-"+strconv.Itoa(int(d.Minor)), link)
	var st unix.Stat_t
	require.NoError(t, unix.Stat(devmapper.NodePath("dmnode"), &st))
	require.Equal(t, unix.Mkdev(d.Major, d.Minor), st.Rdev)

	before = c.Calls()
	require.NoError(t, c.Deactivate("dmnode"))
	require.Equal(t, uint64(1), c.Calls()-before)
	_, err = os.Lstat("/dev/mapper/dmnode")
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestKernelActivateReplacesAStaleNode(t *testing.T) {
	c := open(t)
	stale := devmapper.NodePath("dmstale")
	require.NoError(t, os.Symlink("../dm-99999", stale))
	d := device(t, c, "dmstale", zeroes(16))

	link, err := os.Readlink(stale)
	require.NoError(t, err)
	require.Equal(t, "../dm-"+strconv.Itoa(int(d.Minor)), link)
	info, err := os.Lstat(stale)
	require.NoError(t, err)
	require.NoError(t, devmapper.EnsureNode(d))
	again, err := os.Lstat(stale)
	require.NoError(t, err)
	require.True(t, os.SameFile(info, again), "the second call changes nothing")
	leftovers, err := filepath.Glob("/dev/mapper/.*")
	require.NoError(t, err)
	require.Empty(t, leftovers)
}

func TestKernelForeignNodeIsKept(t *testing.T) {
	c := open(t)
	d := device(t, c, "dmmknod", zeroes(16))
	path := devmapper.NodePath("dmmknod")
	require.NoError(t, os.Remove(path))
	// A node as dmsetup creates it on a host without udev.
	require.NoError(t, unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(d.Major, d.Minor))))

	require.NoError(t, devmapper.EnsureNode(d))

	info, err := os.Lstat(path)
	require.NoError(t, err)
	require.NotZero(t, info.Mode()&os.ModeDevice)
}

func TestKernelRemoveNodeSparesAnotherLiveDevice(t *testing.T) {
	c := open(t)
	device(t, c, "dmlive", zeroes(16))
	require.NoError(t, devmapper.RemoveNode("dmlive"))
	require.FileExists(t, devmapper.NodePath("dmlive"))
	require.NoError(t, devmapper.RemoveNode("dmnever"), "nothing to remove")

	// A link to a device with another name is stale.
	target, err := os.Readlink(devmapper.NodePath("dmlive"))
	require.NoError(t, err)
	require.NoError(t, os.Symlink(target, devmapper.NodePath("dmalias")))
	require.NoError(t, devmapper.RemoveNode("dmalias"))
	_, err = os.Lstat(devmapper.NodePath("dmalias"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

// TestKernelFailedActivations: a failed activation leaves nothing.
func TestKernelFailedActivations(t *testing.T) {
	c := open(t)
	for name, targets := range map[string][]devmapper.Target{
		"unknown type": {{Length: 16, Type: "no-such-type"}},
		"no targets":   nil,
		"gap":          {{Start: 8, Length: 16, Type: "zero"}},
		"NUL":          {{Length: 16, Type: "zero", Params: "\x00"}},
	} {
		_, err := c.Activate("dmfail", "", targets, false)
		require.ErrorIs(t, err, unix.EINVAL, name)
		_, err = c.Info("dmfail")
		require.ErrorIs(t, err, devmapper.ErrNotFound, name)
		_, err = os.Lstat(devmapper.NodePath("dmfail"))
		require.ErrorIs(t, err, os.ErrNotExist, name)
	}
	device(t, c, "dmfail", zeroes(16))
	_, err := c.Activate("dmfail", "", zeroes(16), false)
	require.ErrorIs(t, err, devmapper.ErrExists)
	_, err = c.Info("dmfail")
	require.NoError(t, err, "the existing device is unchanged")
}

func TestKernelParallelActivations(t *testing.T) {
	c := open(t)
	var all sync.WaitGroup
	for i := range 16 {
		name := "dmpar-" + strconv.Itoa(i)
		all.Go(func() {
			for range 3 {
				d, err := c.Activate(name, "", zeroes(16), false)
				if err == nil {
					_, err = os.Stat(devmapper.NodePath(name))
				}
				if err == nil && d.Name != name {
					t.Errorf("%s is %s", name, d.Name)
				}
				if err == nil {
					err = c.Deactivate(name)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
}
