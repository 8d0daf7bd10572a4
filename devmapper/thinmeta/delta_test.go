package thinmeta_test

import (
	"bytes"
	"context"
	"encoding/xml"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

func delta(t testing.TB, left, right thinmeta.Tree) (runs []thinmeta.Run, err error) {
	t.Helper()
	for r, err := range thinmeta.Delta(t.Context(), left, right) {
		if err != nil {
			return nil, err
		}
		runs = append(runs, r)
	}
	return runs, nil
}

func treeOf(t testing.TB, m *thinmeta.Metadata, id uint32) thinmeta.Tree {
	t.Helper()
	tree, err := m.Tree(t.Context(), id)
	require.NoError(t, err)
	return tree
}

// changed adds the pieces of Changed, of random sizes.
func changed(t testing.TB, r *rand.Rand, origin, volume thinmeta.Tree) (total uint64) {
	t.Helper()
	return sumOfPieces(t, func(first uint64) (count, next uint64, more bool, err error) {
		return thinmeta.Changed(t.Context(), origin, volume, first, 1+r.IntN(20))
	})
}

// sumOfPieces adds the counts that read returns for consecutive pieces.
func sumOfPieces(
	t testing.TB, read func(first uint64) (count, next uint64, more bool, err error),
) (total uint64) {
	t.Helper()
	for first := uint64(0); ; {
		count, next, more, err := read(first)
		require.NoError(t, err)
		total += count
		if !more {
			return total
		}
		require.Greater(t, next, first, "it makes progress")
		first = next
	}
}

func mappedByRight(runs []thinmeta.Run) (n uint64) {
	for _, r := range runs {
		if r.Right {
			n += r.Length
		}
	}
	return n
}

// deltaOf is the output of thin_delta.
type deltaOf struct {
	Diff struct {
		Runs []struct {
			XMLName xml.Name
			Begin   uint64 `xml:"begin,attr"`
			Length  uint64 `xml:"length,attr"`
		} `xml:",any"`
	} `xml:"diff"`
}

func (d deltaOf) runs(t testing.TB) (runs []thinmeta.Run) {
	t.Helper()
	for _, r := range d.Diff.Runs {
		run := thinmeta.Run{Virtual: r.Begin, Length: r.Length}
		switch r.XMLName.Local {
		case "different":
			run.Left, run.Right = true, true
		case "left_only":
			run.Left = true
		case "right_only":
			run.Right = true
		case "same":
			continue
		default:
			require.Fail(t, "thin_delta says "+r.XMLName.Local)
		}
		runs = append(runs, run)
	}
	return runs
}

func thinDelta(t testing.TB, path string, left, right uint32) []thinmeta.Run {
	t.Helper()
	var d deltaOf
	require.NoError(t, xml.Unmarshal(tool(t, "thin_delta", "--thin1", strconv.Itoa(int(left)),
		"--thin2", strconv.Itoa(int(right)), path), &d))
	return d.runs(t)
}

// TestDeltaOfRandomPools compares Delta on random pools with the known mappings, and for some pools
// with thin_delta. thin_check and thin_dump show that the metadata has these mappings.
func TestDeltaOfRandomPools(t *testing.T) {
	pools, told := 150, 25
	if dmtest.Thorough() {
		pools, told = 3000, 2000
	}
	r := random(t)
	path := filepath.Join(t.TempDir(), "metadata")
	for i := range pools {
		entries := 3 * (1 + r.IntN(5))
		if i%5 == 0 {
			entries = 126
		}
		pool := randomCow(r, entries, 2+r.IntN(12), 1+r.IntN(300))
		image := pool.image(t)
		m := open(t, image)
		ids := slices.Sorted(maps.Keys(pool.volumes))
		mapped := map[uint32]map[uint64]uint64{}
		for _, id := range ids {
			mapped[id] = pool.volumes[id].root.mapped()
		}
		for _, left := range ids {
			all, err := delta(t, thinmeta.Tree{}, treeOf(t, m, left))
			require.NoError(t, err)
			require.Equal(t, pool.runs(nil, mapped[left]), all)
			require.Equal(t, uint64(len(mapped[left])), changed(t, r, thinmeta.Tree{}, treeOf(t, m, left)))
			for range 4 {
				right := ids[r.IntN(len(ids))]
				runs, err := delta(t, treeOf(t, m, left), treeOf(t, m, right))
				require.NoError(t, err)
				require.Equal(t, pool.runs(mapped[left], mapped[right]), runs, "volumes %d and %d", left, right)
				require.Equal(t, mappedByRight(runs), changed(t, r, treeOf(t, m, left), treeOf(t, m, right)))
			}
		}
		if i >= told {
			continue
		}
		require.NoError(t, os.WriteFile(path, image, 0o600))
		left, right := ids[r.IntN(len(ids))], ids[r.IntN(len(ids))]
		require.Equal(t, thinDelta(t, path, left, right), pool.runs(mapped[left], mapped[right]), "volumes %d and %d", left, right)
		if i%4 == 0 {
			tool(t, "thin_check", path)
			for id, all := range parse(t, tool(t, "thin_dump", path)).contents().mappings {
				got := map[uint64]uint64{}
				for _, m := range all {
					got[m.Virtual] = m.Data
				}
				require.Equal(t, mapped[id], got, "volume %d", id)
			}
		}
	}
}

// TestDeltaReadsChangedPaths: Delta reads only the nodes on the paths to changed blocks.
func TestDeltaReadsChangedPaths(t *testing.T) {
	r := random(t)
	pool := newCow(r, 252, 1<<20)
	pool.create(1)
	for virtual := range uint64(60_000) {
		pool.write(1, virtual)
	}
	pool.snapshot(2, 1)
	pool.snapshot(3, 1)
	for _, virtual := range []uint64{5, 30_000, 30_001, 59_999} {
		pool.write(3, virtual)
	}
	pool.snapshot(4, 3)
	pool.write(4, 1<<40)
	counted := &wholeBlocks{t: t, bytes: bytes.NewReader(pool.image(t))}
	m, err := thinmeta.Open(counted)
	require.NoError(t, err)
	for _, c := range []struct {
		left, right uint32
		runs, nodes int
	}{
		{1, 2, 0, 0},
		{1, 3, 3, 2*3 + 2*(1+3+4)},
		{3, 4, 1, 2*3 + 2*(1+1+1)}, // both have that path
		{1, 4, 4, 2*3 + 2*(1+3+4)},
	} {
		left, right := treeOf(t, m, c.left), treeOf(t, m, c.right)
		counted.reads = 0
		runs, err := delta(t, left, right)
		require.NoError(t, err)
		require.Len(t, runs, c.runs)
		require.LessOrEqual(t, counted.reads, c.nodes, "volumes %d and %d", c.left, c.right)
	}
}

// TestDeltaStops: Delta ends when yield returns false, and with the context.
func TestDeltaStops(t *testing.T) {
	r := random(t)
	pool := newCow(r, 6, 1<<20)
	pool.create(1)
	for virtual := range uint64(500) {
		pool.write(1, 2*virtual)
	}
	m := open(t, pool.image(t))
	tree := treeOf(t, m, 1)
	seen := 0
	for run, err := range thinmeta.Delta(t.Context(), tree, thinmeta.Tree{}) {
		require.NoError(t, err)
		require.Equal(t, thinmeta.Run{Virtual: uint64(2 * seen), Length: 1, Left: true}, run)
		if seen++; seen == 3 {
			break
		}
	}
	require.Equal(t, 3, seen)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen = 0
	var last error
	for _, last = range thinmeta.Delta(ctx, tree, thinmeta.Tree{}) {
		seen++
		cancel()
	}
	require.ErrorIs(t, last, context.Canceled)
	require.Less(t, seen, 20)
	_, _, _, err := thinmeta.Changed(ctx, tree, thinmeta.Tree{}, 0, 1)
	require.ErrorIs(t, err, context.Canceled)
	_, err = m.Tree(t.Context(), 2)
	require.ErrorIs(t, err, thinmeta.ErrNoDevice)
	require.Equal(t, tree.Root(), treeOf(t, m, 1).Root())
	require.Zero(t, thinmeta.Tree{}.Root())
}

// TestHostileDeltas have blocks with correct checksums that contradict each other.
func TestHostileDeltas(t *testing.T) {
	for name, c := range map[string]struct {
		change func(image)
		want   string
	}{
		"a leaf too high": {func(m image) {
			m.node(3, 1, pair{5, 4}, pair{9, 5})
			m.node(4, 1, pair{5, 6})
			m.node(5, 2, pair{9, 1})
			m.node(6, 2, pair{5, 1})
		}, "block 5: metadata is damaged: the leaves of its tree"},
		"a leaf too low": {func(m image) {
			m.node(3, 1, pair{5, 4}, pair{9, 5})
			m.node(4, 2, pair{5, 1})
			m.node(5, 1, pair{9, 6})
			m.node(6, 2, pair{9, 1})
		}, "block 5: metadata is damaged: the leaves of its tree"},
		"itself":       {func(m image) { m.node(3, 1, pair{5, 3}) }, "block 3: metadata is damaged: it is below itself"},
		"the way back": {func(m image) { m.node(3, 1, pair{0, 4}, pair{9, 3}); m.node(4, 2, pair{0, 3}) }, "block 3: metadata is damaged"},
		"empty child":  {func(m image) { m.node(3, 1, pair{0, 4}, pair{9, 5}); m.node(4, 2, pair{0, 1}); m.node(5, 2) }, "block 5: metadata is damaged: a node without"},
		"order": {func(m image) {
			m.node(3, 1, pair{10, 4}, pair{20, 5})
			m.node(4, 2, pair{10, 1}, pair{20, 1})
		}, "block 4: metadata is damaged: keys 10..20, not in 10..19"},
	} {
		t.Run(name, func(t *testing.T) {
			image := newImage(32)
			c.change(image)
			m := open(t, image)
			for _, trees := range [][2]thinmeta.Tree{{treeOf(t, m, 7), {}}, {{}, treeOf(t, m, 7)}} {
				_, err := delta(t, trees[0], trees[1])
				require.ErrorIs(t, err, thinmeta.ErrDamaged)
				require.ErrorContains(t, err, c.want)
				_, _, _, err = thinmeta.Changed(t.Context(), trees[0], trees[1], 0, 100)
				require.ErrorIs(t, err, thinmeta.ErrDamaged)
			}
		})
	}
}

// FuzzDelta compares volumes after random changes of the metadata, with correct checksums.
func FuzzDelta(f *testing.F) {
	pool := randomCow(rand.New(rand.NewPCG(1, 1)), 3, 8, 40)
	base := pool.image(f)
	ids := slices.Sorted(maps.Keys(pool.volumes))
	f.Add(uint8(0), uint8(1), edit(0, 0, 0), uint8(0))
	f.Add(uint8(1), uint8(2), append(edit(9, 16, 1), edit(4, 56, 2)...), uint8(3))
	f.Fuzz(func(t *testing.T, left, right uint8, edits []byte, nodes uint8) {
		m := image(bytes.Clone(base))
		for ; len(edits) >= editBytes; edits = edits[editBytes:] {
			number := 1 + int(edits[0])%(m.blocks()-1)
			offset := 4 * (int(edits[1]) + int(edits[2])<<8) % 4096
			copy(m.block(number)[offset:], edits[3:editBytes])
			m.seal(number)
		}
		r := &wholeBlocks{t: t, bytes: bytes.NewReader(m)}
		metadata, err := thinmeta.Open(r)
		require.NoError(t, err)
		var trees [2]thinmeta.Tree
		for i, n := range []uint8{left, right} {
			if int(n) < len(ids) {
				if trees[i], err = metadata.Tree(t.Context(), ids[n]); err != nil {
					return
				}
			}
		}
		r.reads = 0
		runs, err := delta(t, trees[0], trees[1])
		if err != nil {
			require.ErrorIs(t, err, thinmeta.ErrDamaged)
		}
		require.LessOrEqual(t, r.reads, 2*(m.blocks()+16), "each block once for each tree")
		end := uint64(0)
		for i, run := range runs {
			require.NotZero(t, run.Length)
			require.True(t, i == 0 || run.Virtual >= end, "in order")
			end = run.Virtual + run.Length
		}
		total := uint64(0)
		for first, pieces := uint64(0), 0; ; pieces++ {
			require.LessOrEqual(t, pieces, 2*m.blocks()*254)
			count, next, more, err := thinmeta.Changed(t.Context(), trees[0], trees[1], first, 1+int(nodes))
			if err != nil {
				require.ErrorIs(t, err, thinmeta.ErrDamaged)
				return
			}
			total += count
			if !more {
				break
			}
			require.Greater(t, next, first)
			first = next
		}
		if err == nil {
			require.Equal(t, mappedByRight(runs), total)
		}
	})
}
