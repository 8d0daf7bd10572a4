package pool_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
)

const mib = 1 << 20

// newSmallPool opens a pool of 64 MiB of data and 4 MiB of metadata that raises its event at a
// fifth of free data.
func newSmallPool(t *testing.T) (*devmapper.Control, pool.LoopSpec, *pool.Pool) {
	t.Helper()
	control, spec := newSpec(t)
	for _, file := range []string{spec.DataFile, spec.MetadataFile} {
		require.NoError(t, os.Remove(file))
	}
	require.NoError(t, spec.CreateFiles(t.Context(), 64*mib, 4*mib))
	spec.LowWaterPercent = 20
	p, err := spec.Open(t.Context(), control, false)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close(context.WithoutCancel(t.Context()))) })
	return control, spec, p
}

// requireSizes checks the sizes that the kernel reports, and that the pool is writable.
func requireSizes(t *testing.T, p *pool.Pool, data, metadata uint64) {
	t.Helper()
	status, err := p.Status(t.Context())
	require.NoError(t, err)
	require.Equal(t, data, status.Data.Total)
	require.Equal(t, metadata, status.Metadata.Total)
	require.Equal(t, thin.ModeReadWrite, status.Mode)
}

func TestExtend(t *testing.T) {
	control, spec, p := newSmallPool(t)
	ctx := t.Context()
	requireSizes(t, p, 64*mib, 4*mib)
	require.NoError(t, p.Extend(ctx, 100*mib, 0))
	requireSizes(t, p, 100*mib, 4*mib)
	requireLowWater(t, control, spec, 20*mib)
	require.NoError(t, p.Extend(ctx, 0, 16*mib))
	requireSizes(t, p, 100*mib, 16*mib)
	require.NoError(t, p.Extend(ctx, 128*mib, 20*mib))
	requireSizes(t, p, 128*mib, 20*mib)
	before := control.Calls()
	require.NoError(t, p.Extend(ctx, 64*mib, 4*mib), "the pool is already larger")
	require.Equal(t, uint64(5), control.Calls()-before, "it reads two tables and three states, and loads nothing")
	requireSizes(t, p, 128*mib, 20*mib)
	requireLowWater(t, control, spec, 128*mib/5)

	// An attached pool, and one that is loaded again, keep their sizes.
	second, err := spec.Open(ctx, control, true)
	require.NoError(t, err)
	requireSizes(t, second, 128*mib, 20*mib)
	require.NoError(t, second.Extend(ctx, 150*mib, 0))
	require.NoError(t, second.Close(ctx))
	third, err := spec.Open(ctx, control, true)
	require.NoError(t, err)
	requireSizes(t, third, 150*mib, 20*mib)

	// Another threshold moves the mark at the next Extend.
	spec.LowWaterPercent = 50
	fourth, err := spec.Open(ctx, control, true)
	require.NoError(t, err)
	require.NoError(t, fourth.Extend(ctx, 0, 0))
	requireLowWater(t, control, spec, 75*mib)
}

func requireLowWater(t *testing.T, control *devmapper.Control, spec pool.LoopSpec, bytes uint64) {
	t.Helper()
	_, targets, err := control.Table(spec.Name)
	require.NoError(t, err)
	table, err := thin.ParsePoolTable(targets[0].Params)
	require.NoError(t, err)
	require.Equal(t, (bytes+spec.BlockBytes-1)/spec.BlockBytes, table.LowWaterBlocks)
}

// TestExtendAfterACrash: Extend completes an extension after the files have grown. A suspended pool
// is resumed.
func TestExtendAfterACrash(t *testing.T) {
	control, spec, p := newSmallPool(t)
	ctx := t.Context()
	require.NoError(t, os.Truncate(spec.DataFile, 100*mib))
	require.NoError(t, os.Truncate(spec.MetadataFile, 8*mib))
	require.NoError(t, p.Extend(ctx, 100*mib, 8*mib))
	requireSizes(t, p, 100*mib, 8*mib)

	_, err := control.Suspend(spec.Name, devmapper.SuspendOptions{NoFlush: true, SkipLockFS: true})
	require.NoError(t, err)
	p, err = spec.Open(ctx, control, true)
	require.NoError(t, err)
	requireSizes(t, p, 100*mib, 8*mib)
}

// TestExtendWhileThePoolIsInUse extends the pool tenfold while volumes are activated, deactivated
// and written to, all without an error.
func TestExtendWhileThePoolIsInUse(t *testing.T) {
	skipIfShort(t)
	_, _, p := newSmallPool(t)
	ctx := t.Context()
	for id := range thin.ID(4) {
		require.NoError(t, p.CreateThin(ctx, id))
	}
	vol, err := p.Activate(ctx, 0, 512*mib, false)
	require.NoError(t, err)
	var users sync.WaitGroup
	done := make(chan struct{})
	for id := thin.ID(1); id < 4; id++ {
		users.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if _, err := p.Activate(ctx, id, volumeBytes, false); err != nil {
					t.Errorf("activate volume %d: %v", id, err)
					return
				}
				if err := p.Deactivate(ctx, id); err != nil {
					t.Errorf("deactivate volume %d: %v", id, err)
					return
				}
			}
		})
	}
	f, err := os.OpenFile(vol.Path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	content := make([]byte, 100*mib)
	for i := 0; i < len(content); i += 8 {
		binary.NativeEndian.PutUint64(content[i:], uint64(i))
	}
	written := make(chan error, 1)
	go func() {
		// The pool has no room for a third of the content, and holds back those writes until it
		// has.
		_, err := f.Write(content)
		if err == nil {
			err = f.Sync()
		}
		written <- err
	}()
	for bytes := uint64(96 * mib); bytes <= 640*mib; bytes += 32 * mib {
		time.Sleep(50 * time.Millisecond)
		require.NoError(t, p.Extend(ctx, bytes, bytes/32))
	}
	require.NoError(t, <-written)
	close(done)
	users.Wait()
	requireSizes(t, p, 640*mib, 20*mib)
	_, err = f.Seek(0, io.SeekStart)
	require.NoError(t, err)
	got := make([]byte, len(content))
	_, err = io.ReadFull(f, got)
	require.NoError(t, err)
	require.True(t, bytes.Equal(content, got), "the content is intact")
}

// TestExtendBeyondTheMetadata: Extend refuses a size at which the kernel would make the pool
// read-only.
func TestExtendBeyondTheMetadata(t *testing.T) {
	_, spec, p := newSmallPool(t)
	require.ErrorIs(t, p.Extend(t.Context(), 1<<42, 0), pool.ErrMetadataTooSmall)
	requireSizes(t, p, 64*mib, 4*mib)
	info, err := os.Stat(spec.DataFile)
	require.NoError(t, err)
	require.EqualValues(t, 64*mib, info.Size())
	// The kernel supports the largest size that Extend permits.
	require.NoError(t, p.Extend(t.Context(), 256<<30, 0))
	requireSizes(t, p, 256<<30, 4*mib)
	require.NoError(t, p.Extend(t.Context(), 1<<42, 64*mib))
	requireSizes(t, p, 1<<42, 64*mib)
}
