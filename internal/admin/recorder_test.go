package admin

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

// filling is a backend whose pool has one byte more in use at each status.
type filling struct {
	Backend
	used, age atomic.Int64
	silent    atomic.Bool
}

func (f *filling) Fill(_ context.Context, age time.Duration) (Fill, error) {
	f.age.Store(int64(age))
	if f.silent.Load() {
		return Fill{}, errdefs.ErrUnavailable
	}
	return Fill{DataUsed: uint64(f.used.Add(1)), DataTotal: 1 << 40}, nil
}

func TestRecorderRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, pool := NewRecorder(), &filling{}
		ctx, stop := context.WithCancel(t.Context())
		go r.Run(ctx, pool)
		time.Sleep(25 * time.Second)
		require.Len(t, r.history().Points, 3)
		require.Equal(t, recordStep, r.history().Points[1].At.Sub(r.history().Points[0].At))
		require.Greater(t, time.Duration(pool.age.Load()), recordStep, "the kernel is not asked for each point")
		pool.silent.Store(true)
		time.Sleep(10 * time.Second)
		require.Len(t, r.history().Points, 3)
		stop()
		synctest.Wait()
	})
}

// TestRecorderKeepsALongTime: the points cover the whole time, keep all peaks, and are denser for
// recent times.
func TestRecorderKeepsALongTime(t *testing.T) {
	r := &Recorder{most: 200}
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	const samples = 50000
	peak := samples / 3
	for i := range samples {
		fill := Fill{At: start.Add(time.Duration(i) * recordStep), DataUsed: uint64(i % 7)}
		if i == peak {
			fill.DataUsed = 1000
		}
		r.add(fill)
		require.LessOrEqual(t, len(r.points), r.most)
	}
	points := r.history().Points
	require.Equal(t, start, points[0].At)
	end := points[len(points)-1].At
	require.Equal(t, start.Add((samples-1)*recordStep), end)
	most := uint64(0)
	for i, p := range points {
		most = max(most, p.DataUsed)
		if i > 0 {
			gap, age := p.At.Sub(points[i-1].At), end.Sub(points[i-1].At)
			require.Positive(t, gap)
			require.LessOrEqual(t, gap, age/5+2*recordStep, "at %s before the end", age)
		}
	}
	require.EqualValues(t, 1000, most)
}

func TestRecorderNeedsTwoPointsWhileNothingChanges(t *testing.T) {
	r := NewRecorder()
	start := time.Now()
	for i, used := range []uint64{5, 5, 5, 5, 6, 6, 6} {
		r.add(Fill{At: start.Add(time.Duration(i) * recordStep), DataUsed: used})
	}
	require.Equal(t, []Fill{
		{At: start, DataUsed: 5},
		{At: start.Add(3 * recordStep), DataUsed: 5},
		{At: start.Add(4 * recordStep), DataUsed: 6},
		{At: start.Add(6 * recordStep), DataUsed: 6},
	}, r.history().Points)
}

func TestLevels(t *testing.T) {
	for level, spaces := range map[string][]Space{
		LevelOK:    {{Used: 10, Available: 90, MinFree: 10}, {Used: 80, Available: 20}},
		LevelLow:   {{Used: 81, Available: 19, MinFree: 10}, {Used: 89, Available: 11, MinFree: 10}},
		LevelShort: {{Used: 91, Available: 9, MinFree: 10}, {Used: 100}, {}},
	} {
		for _, space := range spaces {
			require.Equal(t, level, LevelOf(space), "%+v", space)
		}
	}
}
