package daemon

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/metadata"
)

// measuredPool is a pool and a measurer with a fake clock.
type measuredPool struct {
	at        time.Time
	takes     time.Duration // the duration of a reading
	commit    thinmeta.Superblock
	exclusive map[uint32]uint64
	read      []uint32 // the volumes whose exclusive bytes were read
	err       error
}

func (p *measuredPool) Committed(context.Context) (thinmeta.Superblock, error) {
	return p.commit, p.err
}

func (p *measuredPool) UsageOf(_ context.Context, rec metadata.Snapshot, parent uint32) (pool.Usage, error) {
	return pool.Usage{Mapped: 10 * uint64(rec.VolumeID), Own: uint64(rec.VolumeID - parent)}, p.err
}

func (p *measuredPool) ExclusiveOf(_ context.Context, rec metadata.Snapshot) (uint64, error) {
	p.at = p.at.Add(p.takes)
	p.read = append(p.read, rec.VolumeID)
	bytes, ok := p.exclusive[rec.VolumeID]
	if !ok {
		return 0, pool.ErrUnknown
	}
	return bytes, p.err
}

// TestSpaces: exclusive bytes are read again after a commit of the pool, but not after every one,
// and only for a limited time.
func TestSpaces(t *testing.T) {
	p := &measuredPool{
		at: time.Now(), takes: 100 * time.Millisecond, commit: thinmeta.Superblock{Time: 1},
		exclusive: map[uint32]uint64{1: 1, 2: 2, 3: 3},
	}
	s := &spaces{clock: func() time.Time { return p.at }}
	records := []metadata.Snapshot{
		{Key: "layer", VolumeID: 1, Kind: snapshots.KindCommitted, Usage: metadata.Usage{Exact: true}},
		{Key: "box", Parent: "layer", VolumeID: 2, Kind: snapshots.KindActive},
		{Key: "look", Parent: "layer", VolumeID: 1, Kind: snapshots.KindView},
		{Key: "other", VolumeID: 3, Kind: snapshots.KindActive},
	}
	look := func(read ...uint32) []space {
		t.Helper()
		p.read = nil
		all := s.of(t.Context(), p, p, records)
		require.Equal(t, read, p.read)
		return all
	}
	known := func(v uint64) *uint64 { return &v }
	want := []space{
		{known(1), known(9), known(1)}, {known(1), known(19), known(2)}, {known(0), known(10), known(0)},
		{known(3), known(27), known(3)},
	}
	require.Equal(t, want, look(1, 2, 3))
	require.Equal(t, want, look(), "the pool has not committed")
	p.commit.Time++
	p.exclusive[1] = 7
	require.Equal(t, want, look(), "it took 300 ms")
	p.at = p.at.Add(2701 * time.Millisecond)
	want[0].exclusive = known(7)
	require.Equal(t, want, look(1, 2, 3))

	// A new snapshot is read at once. A failed reading is unknown, and is tried again with the
	// others.
	p.commit.Time++
	records = append(records, metadata.Snapshot{Key: "new", VolumeID: 4, Kind: snapshots.KindActive})
	want = append(want, space{known(4), known(36), nil})
	require.Equal(t, want, look(4))
	p.exclusive[4] = 4
	require.Equal(t, want, look(), "a pause after a slow reading of a busy pool")
	p.at = p.at.Add(time.Minute)
	want[4].exclusive = known(4)
	require.Equal(t, want, look(1, 2, 3, 4))
	p.commit.Time++

	// Three of four fit in a second. The next reading starts with the new one, the skipped one and
	// the oldest.
	p.at = p.at.Add(time.Minute)
	p.takes = 400 * time.Millisecond
	for id := range p.exclusive {
		p.exclusive[id]++
	}
	look(1, 2, 3)
	records = append(records, metadata.Snapshot{Key: "newer", VolumeID: 5, Kind: snapshots.KindActive})
	p.at = p.at.Add(time.Minute)
	look(5, 4, 1)

	p.err = thin.ErrPoolFailed
	p.at = p.at.Add(time.Minute)
	for _, sp := range s.of(t.Context(), p, p, records[:1]) {
		require.Nil(t, sp.used)
		require.NotNil(t, sp.exclusive, "from an earlier list")
	}
}

// slowVolume is a measurer with one volume that blocks until the context ends.
type slowVolume struct {
	*measuredPool
	id uint32
}

func (v slowVolume) ExclusiveOf(ctx context.Context, rec metadata.Snapshot) (uint64, error) {
	if rec.VolumeID == v.id {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	return v.measuredPool.ExclusiveOf(ctx, rec)
}

// TestSpacesOfALargeVolume: a volume that exceeds a list's time is unknown, and the others are
// measured in turn.
func TestSpacesOfALargeVolume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &measuredPool{exclusive: map[uint32]uint64{1: 1, 3: 3}}
		s := &spaces{}
		records := []metadata.Snapshot{
			{Key: "first", VolumeID: 1, Kind: snapshots.KindActive}, {Key: "large", VolumeID: 2, Kind: snapshots.KindActive},
			{Key: "last", VolumeID: 3, Kind: snapshots.KindActive},
		}
		var all []space
		for range 3 {
			begun := time.Now()
			all = s.of(t.Context(), p, slowVolume{p, 2}, records)
			require.LessOrEqual(t, time.Since(begun), spacesTime)
			p.commit.Time++
			time.Sleep(spacesRest * spacesTime)
		}
		require.NotNil(t, all[0].exclusive)
		require.Nil(t, all[1].exclusive)
		require.NotNil(t, all[2].exclusive)
	})
}
