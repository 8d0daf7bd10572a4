package check_test

import (
	"context"
	"iter"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/internal/check"
)

// large is a pool whose layer and container have many blocks.
type large struct {
	contents
	blocks uint64
	wrong  uint64 // a block of the container that should be the layer's
	seen   func() // called in the middle of the container
}

func (l large) Mappings(ctx context.Context, id uint32) iter.Seq2[thinmeta.Mapping, error] {
	if id != 2 && id != 3 {
		return l.contents.Mappings(ctx, id)
	}
	return func(yield func(thinmeta.Mapping, error) bool) {
		for i := range l.blocks {
			m := thinmeta.Mapping{Virtual: i, Data: 100 + i, Time: 1}
			if id == 3 && i == l.wrong {
				m.Data = 99
			}
			if id == 3 && i == l.blocks/2 {
				l.seen()
			}
			if !yield(m, nil) {
				return
			}
		}
	}
}

// TestCheckOfLargeVolumes: the memory of a check does not depend on the size of a snapshot.
func TestCheckOfLargeVolumes(t *testing.T) {
	live := func() int64 {
		var stats runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&stats)
		return int64(stats.HeapAlloc)
	}
	const blocks = 3 << 20
	before, most := live(), int64(0)
	in, c := world()
	for i := range in.Records.Snapshots {
		in.Records.Snapshots[i].Size = blocks * blockBytes
	}
	for i := range in.Devices {
		in.Devices[i].Bytes = blocks * blockBytes
	}
	l := large{contents: c, blocks: blocks, wrong: blocks, seen: func() { most = live() - before }}
	in.Contents = l
	require.Empty(t, compare(t, in).Findings)
	require.Less(t, most, int64(blocks*24/2), "half the memory of the layer's mappings")

	l.wrong = blocks - 1
	in.Contents = l
	found := compare(t, in).Findings
	require.Len(t, found, 1)
	require.Equal(t, check.KindParent, found[0].Kind)
}
