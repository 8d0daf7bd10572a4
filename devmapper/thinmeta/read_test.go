package thinmeta_test

import (
	"bytes"
	"context"
	"maps"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
)

const metadataBytes = 16 << 20

// random returns a random source whose seed is in the log.
func random(t testing.TB) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// wholeBlocks is a reader that checks the package's promise to read whole, aligned blocks.
type wholeBlocks struct {
	t     testing.TB
	bytes *bytes.Reader
	reads int
}

func (w *wholeBlocks) ReadAt(p []byte, offset int64) (int, error) {
	assert.Len(w.t, p, 4096)
	assert.Zero(w.t, offset%4096)
	w.reads++
	return w.bytes.ReadAt(p, offset)
}

func open(t testing.TB, image []byte) *thinmeta.Metadata {
	t.Helper()
	m, err := thinmeta.Open(&wholeBlocks{t: t, bytes: bytes.NewReader(image)})
	require.NoError(t, err)
	return m
}

func load(t testing.TB, path string) []byte {
	t.Helper()
	image, err := os.ReadFile(path)
	require.NoError(t, err)
	return image
}

// TestReadsWhatThinDumpReads compares random pools with the output of thin_dump.
func TestReadsWhatThinDumpReads(t *testing.T) {
	for name, c := range map[string]struct{ volumes, span, written int }{
		"a volume":              {1, 40, 0},
		"volumes with mappings": {30, 2000, 0},
		"many volumes":          {900, 60, 0},     // more than fit in a node of either tree
		"a large volume":        {2, 400, 70_000}, // its tree has three levels
	} {
		t.Run(name, func(t *testing.T) {
			r := random(t)
			pool := randomPool(r, c.volumes, c.span)
			for i := range c.written {
				pool.write(slices.Min(slices.Collect(maps.Keys(pool.volumes))), uint64(2*i))
			}
			want := pool.contents()
			path := restore(t, want.dump(pool.time), metadataBytes)
			dump := parse(t, tool(t, "thin_dump", path))
			require.Equal(t, want.devices, dump.contents().devices, "the tools keep the input")

			m := open(t, load(t, path))
			got, err := read(t, m)
			require.NoError(t, err)
			require.Equal(t, dump.contents(), got)
			for _, d := range want.devices {
				writes, err := m.Writes(t.Context(), d.ID)
				require.NoError(t, err)
				require.Equal(t, writesOf(d, want.mappings[d.ID]), writes)
			}
			distinct := map[uint64]bool{}
			for _, all := range want.mappings {
				for _, mapping := range all {
					distinct[mapping.Data] = true
				}
			}
			mapped, err := m.MappedBlocks(t.Context())
			require.NoError(t, err)
			require.EqualValues(t, len(distinct), mapped)
			s := m.Superblock()
			assert.Equal(t, mapped, s.DataUsed)
			assert.Equal(t, pool.time, s.Time)
			assert.Equal(t, dump.TransactionID, s.TransactionID)
			assert.Equal(t, dump.Version, s.Version)
			assert.Equal(t, dump.DataBlockSectors, s.DataBlockSectors)
			assert.Equal(t, uint64(metadataBytes/4096), s.MetadataBlocks)
			assert.Zero(t, s.HeldRoot)
			assert.False(t, s.NeedsCheck)
		})
	}
}

// writesOf returns the writes to a volume according to a dump.
func writesOf(d thinmeta.Device, all []thinmeta.Mapping) thinmeta.Writes {
	w := thinmeta.Writes{Snapshotted: d.SnapshottedTime > d.CreationTime, Undated: d.CreationTime == 0, Mapped: d.MappedBlocks}
	for _, m := range all {
		w.SinceCreation = w.SinceCreation || m.Time >= d.CreationTime
		w.SinceSnapshot = w.SinceSnapshot || m.Time >= d.SnapshottedTime
		w.End = m.Virtual + 1
	}
	return w
}

// TestWritesBeyondTheTimesOfMappings: mappings have 24 bits of the pool's time. Beyond that,
// nothing shows that a block is old.
func TestWritesBeyondTheTimesOfMappings(t *testing.T) {
	pool := newModel()
	pool.time = 1<<24 - 2
	pool.create(1)
	pool.write(1, 3)
	pool.snapshot(2, 1)
	pool.snapshot(3, 1)
	m := open(t, load(t, restore(t, pool.contents().dump(pool.time), metadataBytes)))
	for id, written := range map[uint32]bool{2: false, 3: true} {
		writes, err := m.Writes(t.Context(), id)
		require.NoError(t, err)
		require.Equal(t, written, writes.SinceCreation, "volume %d", id)
		require.Equal(t, written, writes.SinceSnapshot, "volume %d", id)
	}
	_, err := m.Writes(t.Context(), 4)
	require.ErrorIs(t, err, thinmeta.ErrNoDevice)
}

// TestWritesAfterAReset: after a reset, times prove nothing.
func TestWritesAfterAReset(t *testing.T) {
	pool := newModel()
	pool.create(1)
	pool.write(1, 3)
	pool.snapshot(2, 1)
	dump := regexp.MustCompile(` creation_time="\d+" snap_time="\d+"`).ReplaceAllString(pool.contents().dump(1), ` creation_time="0" snap_time="1"`)
	dump = regexp.MustCompile(`(_mapping [^>]*) time="\d+"`).ReplaceAllString(dump, `$1 time="0"`)
	m := open(t, load(t, restore(t, dump, metadataBytes)))
	writes, err := m.Writes(t.Context(), 2)
	require.NoError(t, err)
	require.Equal(t, thinmeta.Writes{SinceCreation: true, Snapshotted: true, Undated: true, Mapped: 1, End: 4}, writes)
}

func TestNoSuchVolume(t *testing.T) {
	pool := randomPool(random(t), 300, 30)
	want := pool.contents()
	m := open(t, load(t, restore(t, want.dump(pool.time), metadataBytes)))
	last := want.devices[len(want.devices)-1].ID
	for id := range last + 2 {
		if pool.volumes[id] != nil {
			continue
		}
		for _, err := range m.Mappings(t.Context(), id) {
			require.ErrorIs(t, err, thinmeta.ErrNoDevice)
			require.ErrorContains(t, err, "volume")
		}
	}
}

// TestStops: a walk ends when its caller stops, and with the context.
func TestStops(t *testing.T) {
	pool := randomPool(random(t), 400, 400)
	image := load(t, restore(t, pool.contents().dump(pool.time), metadataBytes))
	counted := &wholeBlocks{t: t, bytes: bytes.NewReader(image)}
	m, err := thinmeta.Open(counted)
	require.NoError(t, err)
	counted.reads = 0
	for _, err := range m.Devices(t.Context()) {
		require.NoError(t, err)
		break
	}
	require.Equal(t, 2, counted.reads, "the root and the first leaf")

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen := 0
	for _, err := range m.Devices(ctx) {
		if err != nil {
			require.ErrorIs(t, err, context.Canceled)
			break
		}
		seen++
		cancel()
	}
	require.Positive(t, seen)
	require.Less(t, seen, 400)
}
