package inactive_test

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/inactive"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/internal/dmtest/thintools"
)

const block = 64 << 10

// TestReadsAsTheKernelMaps compares reads of random parts with the content.
func TestReadsAsTheKernelMaps(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	data := make([]byte, 8*block)
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	const size = 5*block + 512
	all := []thinmeta.Mapping{{Virtual: 0, Data: 7}, {Virtual: 1, Data: 2}, {Virtual: 4, Data: 0}, {Virtual: 5, Data: 4}}
	want := make([]byte, 6*block)
	for _, m := range all {
		copy(want[m.Virtual*block:], data[m.Data*block:][:block])
	}
	want = want[:size]
	volume := open(t.Context(), t, data, size, all)

	whole := make([]byte, size)
	n, err := volume.ReadAt(whole, 0)
	require.NoError(t, err)
	require.Equal(t, size, n)
	require.True(t, bytes.Equal(want, whole))
	for range 500 {
		offset := r.IntN(size)
		part := make([]byte, r.IntN(2*block))
		n, err := volume.ReadAt(part, int64(offset))
		if offset+len(part) > size {
			require.ErrorIs(t, err, io.EOF)
		} else {
			require.NoError(t, err)
		}
		require.Equal(t, min(len(part), size-offset), n)
		require.True(t, bytes.Equal(want[offset:][:n], part[:n]))
	}
	n, err = volume.ReadAt(make([]byte, 1), size)
	require.ErrorIs(t, err, io.EOF)
	require.Zero(t, n)
	_, err = volume.ReadAt(make([]byte, 1), -1)
	require.ErrorIs(t, err, unix.EINVAL)
}

func TestReadsFail(t *testing.T) {
	// The data device is smaller than the pool.
	volume := open(t.Context(), t, make([]byte, block), 2*block, []thinmeta.Mapping{{Virtual: 0, Data: 1}})
	_, err := volume.ReadAt(make([]byte, 512), 0)
	require.ErrorIs(t, err, thinmeta.ErrDamaged)
	require.ErrorContains(t, err, "block 1 of the pool")
	_, err = volume.ReadAt(make([]byte, 512), block)
	require.NoError(t, err, "an unmapped block")

	ended, end := context.WithCancel(t.Context())
	volume = open(ended, t, make([]byte, block), block, nil)
	end()
	_, err = volume.ReadAt(make([]byte, 512), 0)
	require.ErrorIs(t, err, context.Canceled)
}

// open returns the content of volume 1 of a pool with the given data.
func open(ctx context.Context, t *testing.T, data []byte, size uint64, all []thinmeta.Mapping) *inactive.Volume {
	t.Helper()
	metadata, err := os.ReadFile(thintools.Restore(t, 0, 4<<20, thintools.Volume{ID: 1, Mappings: all}))
	require.NoError(t, err)
	m, err := thinmeta.Open(bytes.NewReader(metadata))
	require.NoError(t, err)
	tree, err := m.Tree(t.Context(), 1)
	require.NoError(t, err)
	return inactive.NewVolume(ctx, tree, bytes.NewReader(data), block, size)
}
