package thin_test

import (
	"errors"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/dmtest/dmpool"
)

// TestKernelFailedCommitIsAnError makes the metadata device under a pool fail: the kernel answers a
// message with success although its commit failed.
func TestKernelFailedCommitIsAnError(t *testing.T) {
	// The pool's devices are volumes of another pool, whose tables can be replaced by failing ones.
	outer := newPool(t)
	c := outer.Control
	const metadataSectors, dataSectors = 4 * mib / 512, 32 * mib / 512
	require.NoError(t, outer.CreateThin(1))
	require.NoError(t, outer.CreateThin(2))
	metadata := activate(t, c, "dmbetween", thin.Target(outer.Number, 1, metadataSectors))
	data := activate(t, c, "dmdata", thin.Target(outer.Number, 2, dataSectors))
	target, err := thin.PoolTable{
		Metadata: metadata.Number(), Data: data.Number(), BlockSectors: dmpool.BlockSectors, SkipBlockZeroing: true,
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

// TestKernelFullPool: a full pool that does not queue writes fails them, and reports its mode.
// Volumes can still be created and deleted.
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

	require.NoError(t, p.Control.Deactivate("dmfull"))
	require.NoError(t, p.Delete(1))
	s, err = p.Status(false)
	require.NoError(t, err)
	require.Equal(t, thin.ModeReadWrite, s.Mode, "space is free again")
}

func activate(t *testing.T, c *devmapper.Control, name string, target devmapper.Target) devmapper.Device {
	t.Helper()
	d, err := c.Activate(name, "", []devmapper.Target{target}, false)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Deactivate(name), name) })
	return d
}

// fill writes n bytes to a device and flushes it. It returns an error of either.
func fill(path string, n int) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	piece := make([]byte, mib)
	for i := range piece {
		piece[i] = 'f'
	}
	for written := 0; written < n && err == nil; written += len(piece) {
		_, err = f.Write(piece)
	}
	return errors.Join(err, f.Sync(), f.Close())
}
