package pool_test

import (
	"bytes"
	"io"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/dmtest/dmpool"
)

// TestInspect inspects a pool that does not zero blocks, also while it is suspended.
func TestInspect(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	p := dmpool.New(t, 64<<20, 4<<20)
	require.NoError(t, p.CreateThin(7))
	const size = 1 << 20
	_, err := p.Activate("inspected", 7, size, false)
	require.NoError(t, err)
	node := devmapper.NodePath("inspected")
	content := bytes.Repeat([]byte("content."), size/8)
	require.NoError(t, os.WriteFile(node, content, 0o600))
	require.NoError(t, blockdev.Flush(node))

	spec := pool.ExistingSpec{Device: p.Name()}
	for _, suspended := range []bool{false, true} {
		if suspended {
			_, err := p.Control.Suspend(p.Name(), devmapper.SuspendOptions{})
			require.NoError(t, err)
		}
		found, err := spec.Inspect(t.Context(), p.Control)
		require.NoError(t, err)
		require.Equal(t, suspended, found.Device.Suspended)
		require.True(t, found.Table.SkipBlockZeroing)
		require.EqualValues(t, 64<<20/devmapper.SectorBytes, found.Sectors)
		require.EqualValues(t, 64<<10, found.BlockBytes())
		require.Equal(t, thin.ModeReadWrite, found.Status.Mode)
		_, isLVM := found.LVM()
		require.False(t, isLVM)
		require.NoError(t, found.ReadCommitted(t.Context(), func(m *thinmeta.Metadata, data io.ReaderAt) error {
			tree, err := m.Tree(t.Context(), 7)
			require.NoError(t, err)
			at, mapped, err := tree.Lookup(t.Context(), 3)
			require.NoError(t, err)
			require.True(t, mapped)
			block := make([]byte, 64<<10)
			_, err = data.ReadAt(block, int64(at.Data)<<16)
			require.NoError(t, err)
			require.True(t, bytes.Equal(content[3<<16:][:1<<16], block))
			return nil
		}))
		devices, err := found.MappedDevices(t.Context())
		require.NoError(t, err)
		require.Len(t, devices, 1)
		require.Equal(t, thin.ID(7), devices[0].Shows)
		require.Equal(t, "inspected", devices[0].Name)
	}
	_, err = p.Control.Resume(p.Name())
	require.NoError(t, err)

	found, err := spec.Inspect(t.Context(), p.Control)
	require.NoError(t, err)
	require.ErrorIs(t, found.ReadCommitted(t.Context(), func(*thinmeta.Metadata, io.ReaderAt) error {
		require.NoError(t, p.CreateThin(8))
		return os.ErrInvalid // must be replaced by ErrChanged
	}), pool.ErrChanged)
	require.ErrorIs(t, found.ReadCommitted(t.Context(), func(*thinmeta.Metadata, io.ReaderAt) error {
		return os.ErrInvalid
	}), os.ErrInvalid)

	_, err = pool.ExistingSpec{Device: "inspected"}.Inspect(t.Context(), p.Control)
	require.ErrorIs(t, err, pool.ErrWrongPool)
	_, err = pool.ExistingSpec{Device: "nothing"}.Inspect(t.Context(), p.Control)
	require.ErrorIs(t, err, devmapper.ErrNotFound)
}

// TestInspectRefusesOurPool: thinsnap created the pool for another root.
func TestInspectRefusesOurPool(t *testing.T) {
	control, spec := newSpec(t)
	p, err := spec.Open(t.Context(), control, false)
	require.NoError(t, err)
	defer func() { require.NoError(t, p.Close(t.Context())) }()
	_, err = pool.ExistingSpec{Device: p.Name()}.Inspect(t.Context(), control)
	require.ErrorIs(t, err, pool.ErrWrongPool)
}
