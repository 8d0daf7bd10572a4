package thin_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/dmtest/dmpool"
)

// TestKernelFailedCommitIsAnError takes the metadata device away under a pool:
// the kernel then answers a message with success although its commit failed.
func TestKernelFailedCommitIsAnError(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	c, err := devmapper.Open()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	dir := t.TempDir()
	const metadataSectors, dataSectors = 4 * mib / 512, 64 * mib / 512
	metadata := attach(t, filepath.Join(dir, "metadata"), metadataSectors*512)
	data := attach(t, filepath.Join(dir, "data"), dataSectors*512)
	// A device between, whose table can be exchanged for one that fails.
	between := activate(t, c, "dmbetween",
		devmapper.Target{Length: metadataSectors, Type: "linear", Params: metadata.Number() + " 0"})
	target, err := thin.PoolTable{
		Metadata: between.Number(), Data: data.Number(), BlockSectors: dmpool.BlockSectors, SkipBlockZeroing: true,
	}.Target(dataSectors)
	require.NoError(t, err)
	activate(t, c, "dmbroken", target)
	p := thin.NewPool(c, "dmbroken")
	require.NoError(t, p.CreateThin(1))

	_, err = c.Load("dmbetween", []devmapper.Target{{Length: metadataSectors, Type: "error"}}, false)
	require.NoError(t, err)
	_, err = c.Suspend("dmbetween", devmapper.SuspendOptions{NoFlush: true, SkipLockFS: true})
	require.NoError(t, err)
	_, err = c.Resume("dmbetween")
	require.NoError(t, err)

	_, answer := c.Message("dmbroken", 0, "create_thin 2")
	t.Logf("the kernel's own answer: %v", answer)
	err = p.CreateThin(3)
	require.Error(t, err)
	s, statusErr := p.Status(true)
	require.NoError(t, statusErr)
	require.False(t, s.Changeable(), s)
	if s.Mode == thin.ModeFail {
		require.ErrorIs(t, err, thin.ErrPoolFailed)
	} else {
		require.ErrorIs(t, err, thin.ErrPoolReadOnly)
	}
}

// TestKernelFullPool fills a pool that queues writes nowhere: it fails them, and
// says so; volumes can still be made and deleted.
func TestKernelFullPool(t *testing.T) {
	p := newPool(t)
	_, targets, err := p.Control.Table(p.Name())
	require.NoError(t, err)
	table, err := thin.ParsePoolTable(targets[0].Params)
	require.NoError(t, err)
	table.ErrorIfNoSpace = true
	target, err := table.Target(targets[0].Length)
	require.NoError(t, err)
	_, err = p.Control.Load(p.Name(), []devmapper.Target{target}, false)
	require.NoError(t, err)
	_, err = p.Control.Resume(p.Name())
	require.NoError(t, err)
	require.NoError(t, p.CreateThin(1))
	_, err = p.Activate("dmfull", 1, 128*mib, false)
	require.NoError(t, err)

	require.ErrorIs(t, fill(devmapper.NodePath("dmfull"), 128*mib), unix.EIO)

	s, err := p.Status(true)
	require.NoError(t, err)
	require.Equal(t, thin.ModeOutOfDataSpace, s.Mode)
	require.Equal(t, s.DataTotal, s.DataUsed)
	require.False(t, s.QueueIfNoSpace)
	require.NoError(t, p.CreateThin(2))
	require.NoError(t, p.Delete(2))

	require.NoError(t, blockdev.Discard(t.Context(), devmapper.NodePath("dmfull"), 0, 128*mib))
	s, err = p.Status(false)
	require.NoError(t, err)
	require.Equal(t, thin.ModeReadWrite, s.Mode, "space is back")
}

func activate(t *testing.T, c *devmapper.Control, name string, target devmapper.Target) devmapper.Device {
	t.Helper()
	d, err := c.Activate(name, "", []devmapper.Target{target}, false)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Deactivate(name), fmt.Sprintf("device %s", name)) })
	return d
}
