package thin_test

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/dmtest/dmpool"
)

const mib = 1 << 20

func newPool(t *testing.T) *dmpool.Pool {
	t.Helper()
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	return dmpool.New(t, 64*mib, 4*mib)
}

// write writes n bytes of value to the start of a device and flushes it.
func write(t *testing.T, path string, value byte, n int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.Write(bytes.Repeat([]byte{value}, n))
	require.NoError(t, err)
	require.NoError(t, f.Sync())
	require.NoError(t, f.Close())
}

func requireContent(t *testing.T, path string, value byte, n int) {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer func() { require.NoError(t, f.Close()) }()
	got := make([]byte, n)
	_, err = f.Read(got)
	require.NoError(t, err)
	require.True(t, bytes.Equal(bytes.Repeat([]byte{value}, n), got), "content of %s", path)
}

func volume(t *testing.T, p *dmpool.Pool, name string) thin.Status {
	t.Helper()
	_, targets, err := p.Control.Status(name, devmapper.StatusOptions{})
	require.NoError(t, err)
	require.Len(t, targets, 1)
	require.Equal(t, thin.Type, targets[0].Type)
	s, err := thin.ParseStatus(targets[0].Params)
	require.NoError(t, err)
	return s
}

func TestKernelPoolMessages(t *testing.T) {
	p := newPool(t)
	require.NoError(t, p.CreateThin(1))
	require.NoError(t, p.CreateSnap(2, 1))

	err := p.CreateThin(1)
	require.ErrorIs(t, err, thin.ErrExists)
	require.ErrorIs(t, err, unix.EEXIST)
	require.ErrorIs(t, p.CreateSnap(2, 1), thin.ErrExists)
	err = p.CreateSnap(3, 99)
	require.ErrorIs(t, err, thin.ErrNoDevice)
	require.ErrorIs(t, err, unix.ENODATA)
	require.ErrorIs(t, p.Delete(99), thin.ErrNoDevice)

	require.ErrorIs(t, p.CreateThin(thin.MaxID+1), unix.EINVAL)
	require.NoError(t, p.CreateThin(thin.MaxID))
	require.NoError(t, p.Delete(thin.MaxID))

	_, err = p.Activate("dmvol", 1, 16*mib, false)
	require.NoError(t, err)
	err = p.Delete(1)
	require.ErrorIs(t, err, thin.ErrBusy)
	require.ErrorContains(t, err, p.Name())
	require.NoError(t, p.Control.Deactivate("dmvol"))
	require.NoError(t, p.Delete(1))
	require.NoError(t, p.Delete(2))
}

func TestKernelTransactionID(t *testing.T) {
	p := newPool(t)
	require.NoError(t, p.SetTransactionID(0, 7))
	s, err := p.Status(false)
	require.NoError(t, err)
	require.Equal(t, uint64(7), s.TransactionID)
	require.ErrorIs(t, p.SetTransactionID(0, 8), unix.EINVAL)
}

func TestKernelMetadataSnap(t *testing.T) {
	p := newPool(t)
	require.ErrorIs(t, p.ReleaseMetadataSnap(), unix.EINVAL)
	require.NoError(t, p.ReserveMetadataSnap())
	s, err := p.Status(true)
	require.NoError(t, err)
	require.NotZero(t, s.HeldRoot)
	require.ErrorIs(t, p.ReserveMetadataSnap(), thin.ErrBusy)
	require.NoError(t, p.ReleaseMetadataSnap())
	s, err = p.Status(true)
	require.NoError(t, err)
	require.Zero(t, s.HeldRoot)
}

func TestKernelStatusAndTableOfAPool(t *testing.T) {
	p := newPool(t)
	s, err := p.Status(false)
	require.NoError(t, err)
	require.Equal(t, thin.ModeReadWrite, s.Mode)
	require.Equal(t, uint64(4*mib/4096), s.MetadataTotal)
	require.Equal(t, uint64(64*mib/(64<<10)), s.DataTotal)
	require.NotZero(t, s.MetadataUsed)
	require.Zero(t, s.DataUsed)
	require.Equal(t, thin.DiscardPassdown, s.Discard)
	require.True(t, s.QueueIfNoSpace)
	require.False(t, s.NeedsCheck)

	_, status, err := p.Control.Status(p.Name(), devmapper.StatusOptions{})
	require.NoError(t, err)
	require.Equal(t, strings.TrimSpace(status[0].Params), s.String(), "parsed and rendered")

	_, targets, err := p.Control.Table(p.Name())
	require.NoError(t, err)
	table, err := thin.ParsePoolTable(targets[0].Params)
	require.NoError(t, err)
	require.True(t, table.SkipBlockZeroing)
	require.Equal(t, uint32(dmpool.BlockSectors), table.BlockSectors)
	deps, err := p.Control.Deps(p.Name())
	require.NoError(t, err)
	require.Len(t, deps, 2)

	_, err = thin.NewPool(p.Control, "dmnone").Status(true)
	require.ErrorIs(t, err, devmapper.ErrNotFound)
}

func TestKernelSnapshots(t *testing.T) {
	p := newPool(t)
	require.NoError(t, p.CreateThin(1))
	origin, err := p.Activate("dmorigin", 1, 16*mib, false)
	require.NoError(t, err)
	require.Equal(t, thin.Status{}, volume(t, p, "dmorigin"))
	write(t, devmapper.NodePath("dmorigin"), 'a', mib)

	_, err = p.Control.Suspend("dmorigin", devmapper.SuspendOptions{})
	require.NoError(t, err)
	require.NoError(t, p.CreateSnap(2, 1))
	_, err = p.Control.Resume("dmorigin")
	require.NoError(t, err)
	write(t, devmapper.NodePath("dmorigin"), 'b', mib)

	snap, err := p.Activate("dmsnap", 2, 16*mib, true)
	require.NoError(t, err)
	require.True(t, snap.ReadOnly)
	requireContent(t, devmapper.NodePath("dmsnap"), 'a', mib)
	requireContent(t, devmapper.NodePath("dmorigin"), 'b', mib)
	require.Equal(t, thin.Status{MappedSectors: 2048, Highest: 2047, HasHighest: true}, volume(t, p, "dmsnap"))
	s, err := p.Status(false)
	require.NoError(t, err)
	require.Equal(t, uint64(2*mib/(64<<10)), s.DataUsed)

	// A read-only device may be opened for writing, but not written to.
	f, err := os.OpenFile(devmapper.NodePath("dmsnap"), os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.Write(make([]byte, 4096))
	require.ErrorIs(t, err, unix.EPERM)
	require.NoError(t, f.Close())

	_, targets, err := p.Control.Table("dmorigin")
	require.NoError(t, err)
	pool, id, err := thin.ParseTarget(targets[0].Params)
	require.NoError(t, err)
	require.Equal(t, p.Number, pool)
	require.Equal(t, thin.ID(1), id)
	require.Equal(t, uint64(16*mib/512), targets[0].Length)
	require.NotEqual(t, origin.Minor, snap.Minor)
}

func TestKernelVolumeThatDoesNotExist(t *testing.T) {
	p := newPool(t)
	_, err := p.Activate("dmnovol", 5, 16*mib, false)
	require.Error(t, err)
	_, err = p.Control.Info("dmnovol")
	require.ErrorIs(t, err, devmapper.ErrNotFound)
}

// TestKernelPoolRefusesChanges puts a pool into read-only mode, where it refuses messages.
func TestKernelPoolRefusesChanges(t *testing.T) {
	p := newPool(t)
	require.NoError(t, p.CreateThin(1))
	_, targets, err := p.Control.Table(p.Name())
	require.NoError(t, err)
	table, err := thin.ParsePoolTable(targets[0].Params)
	require.NoError(t, err)
	table.ReadOnly = true
	target, err := table.Target(targets[0].Length)
	require.NoError(t, err)
	_, err = p.Control.Load(p.Name(), []devmapper.Target{target}, false)
	require.NoError(t, err)
	_, err = p.Control.Resume(p.Name())
	require.NoError(t, err)

	s, err := p.Status(true)
	require.NoError(t, err)
	require.Equal(t, thin.ModeReadOnly, s.Mode)
	err = p.CreateThin(2)
	require.ErrorIs(t, err, thin.ErrPoolReadOnly)
	require.ErrorIs(t, err, unix.EOPNOTSUPP)
	require.ErrorIs(t, p.Delete(1), thin.ErrPoolReadOnly)
}
