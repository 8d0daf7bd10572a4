package thinmeta_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/dmtest/dmpool"
)

const (
	mib            = 1 << 20
	dataBlockBytes = dmpool.BlockSectors * 512
	volumeBytes    = 64 * mib
)

// livePool is a pool in the kernel with its content: for each block of a volume, the number at its
// beginning.
type livePool struct {
	*dmpool.Pool
	t       *testing.T
	written map[thin.ID]map[uint64]uint64
	last    uint64
}

func (p *livePool) create(id thin.ID) {
	require.NoError(p.t, p.CreateThin(id))
	p.written[id] = map[uint64]uint64{}
}

func (p *livePool) snapshot(id, origin thin.ID) {
	require.NoError(p.t, p.CreateSnap(id, origin))
	p.written[id] = maps.Clone(p.written[origin])
}

// with activates a volume and calls do with its node.
func (p *livePool) with(id thin.ID, do func(node string)) {
	name := fmt.Sprintf("dmmeta-%d", id)
	_, err := p.Activate(name, id, volumeBytes, false)
	require.NoError(p.t, err)
	do(devmapper.NodePath(name))
	require.NoError(p.t, p.Control.Deactivate(name))
}

func (p *livePool) write(id thin.ID, first, count uint64) {
	b := make([]byte, count*dataBlockBytes)
	for i := range count {
		p.last++
		binary.LittleEndian.PutUint64(b[i*dataBlockBytes:], p.last)
		p.written[id][first+i] = p.last
	}
	p.with(id, func(node string) {
		f, err := os.OpenFile(node, os.O_WRONLY, 0)
		require.NoError(p.t, err)
		_, err = f.WriteAt(b, int64(first*dataBlockBytes))
		require.NoError(p.t, errors.Join(err, f.Sync(), f.Close()))
	})
}

func (p *livePool) discard(id thin.ID, first, count uint64) {
	p.with(id, func(node string) {
		f, err := os.OpenFile(node, os.O_RDWR, 0)
		require.NoError(p.t, err)
		err = blockdev.Discard(p.t.Context(), f, first*dataBlockBytes, count*dataBlockBytes, dataBlockBytes, nil)
		require.NoError(p.t, errors.Join(err, f.Close()))
	})
	for i := range count {
		delete(p.written[id], first+i)
	}
}

func (p *livePool) hold() *thinmeta.Metadata {
	require.NoError(p.t, p.ReserveMetadataSnap())
	s, err := p.Status(false)
	require.NoError(p.t, err)
	require.NotZero(p.t, s.HeldRoot)
	_, targets, err := p.Control.Table(p.Name())
	require.NoError(p.t, err)
	table, err := thin.ParsePoolTable(targets[0].Params)
	require.NoError(p.t, err)
	path, err := blockdev.Path(table.Metadata)
	require.NoError(p.t, err)
	d, err := blockdev.OpenDirect(path)
	require.NoError(p.t, err)
	p.t.Cleanup(func() { assert.NoError(p.t, d.Close()) })
	m, err := thinmeta.OpenSnapshot(d, s.HeldRoot)
	require.NoError(p.t, err)
	return m
}

// require compares metadata with the writes, down to the blocks' content.
func (p *livePool) require(m *thinmeta.Metadata, written map[thin.ID]map[uint64]uint64) contents {
	p.t.Helper()
	data, err := os.Open(p.DataFile)
	require.NoError(p.t, err)
	defer func() { require.NoError(p.t, data.Close()) }()
	c, err := read(p.t, m)
	require.NoError(p.t, err)
	var ids []thin.ID
	for _, d := range c.devices {
		ids = append(ids, thin.ID(d.ID))
		found := map[uint64]uint64{}
		for _, at := range c.mappings[d.ID] {
			var b [8]byte
			_, err := data.ReadAt(b[:], int64(at.Data*dataBlockBytes))
			require.NoError(p.t, err)
			found[at.Virtual] = binary.LittleEndian.Uint64(b[:])
		}
		require.Equal(p.t, written[thin.ID(d.ID)], found, "volume %d", d.ID)
		require.Equal(p.t, uint64(len(found)), d.MappedBlocks, "volume %d", d.ID)
	}
	require.Equal(p.t, slices.Sorted(maps.Keys(written)), ids)
	return c
}

// TestKernelMetadata reads a pool that the kernel changes.
func TestKernelMetadata(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	p := &livePool{Pool: dmpool.New(t, 128*mib, 8*mib), t: t, written: map[thin.ID]map[uint64]uint64{}}
	p.create(1)
	p.write(1, 10, 600) // more than fit in a node
	p.snapshot(2, 1)
	p.write(2, 100, 3)
	p.write(2, 700, 2)
	p.snapshot(3, 2)
	p.write(3, 101, 1)
	p.discard(3, 200, 300)
	p.create(40)
	p.write(40, 10, 20)
	p.snapshot(6, 1)
	p.snapshot(70, 40)
	p.create(8)
	require.NoError(t, p.SetTransactionID(0, 5))
	p.snapshot(1<<24-1, 3)

	held := p.hold()
	before := p.require(held, p.written)
	assert.Equal(t, uint64(5), held.Superblock().TransactionID)
	assert.Equal(t, uint32(dmpool.BlockSectors), held.Superblock().DataBlockSectors)
	assert.Equal(t, uint64(5), before.devices[len(before.devices)-1].TransactionID)
	// The metadata snapshot does not change with the pool.
	was := map[thin.ID]map[uint64]uint64{}
	for id, blocks := range p.written {
		was[id] = maps.Clone(blocks)
	}
	p.write(1, 400, 1)
	p.discard(2, 10, 1)
	require.NoError(t, p.Delete(6))
	delete(p.written, 6)
	require.Equal(t, before, p.require(held, was))
	require.NoError(t, p.ReleaseMetadataSnap())

	held = p.hold()
	p.require(held, p.written)
	require.NoError(t, p.ReleaseMetadataSnap())
	s, err := p.Status(false)
	require.NoError(t, err)
	require.Zero(t, s.HeldRoot)
}
