package pool

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"
)

const kib64, mib, gib = 64 << 10, 1 << 20, 1 << 30

func TestGrowthBeginsAtTheThreshold(t *testing.T) {
	g := Growth{Threshold: 80, Percent: 20}
	require.False(t, g.Short(Space{Used: 79 * mib, Total: 100 * mib}, kib64))
	require.True(t, g.Short(Space{Used: 80 * mib, Total: 100 * mib}, kib64))
	require.True(t, g.Short(Space{Used: 100 * mib, Total: 100 * mib}, kib64))
	require.False(t, Growth{Threshold: 100, Percent: 20}.Short(Space{Used: 100 * mib, Total: 100 * mib}, kib64))
	// The pool is short where the kernel raises its event, for every size and threshold.
	for total := uint64(1); total < 300; total++ {
		for threshold := uint64(1); threshold < 100; threshold++ {
			spec := LoopSpec{BlockBytes: kib64, LowWaterPercent: 100 - threshold}
			low := spec.lowWaterBlocks(total)
			g := Growth{Threshold: threshold}
			require.True(t, g.Short(Space{Used: (total - low) * kib64, Total: total * kib64}, kib64), "%d blocks, %d%%", total, threshold)
		}
	}
}

func TestGrowthNext(t *testing.T) {
	g := Growth{Threshold: 80, Percent: 20}
	unlimited := uint64(math.MaxUint64)
	for name, test := range map[string]struct {
		growth  Growth
		space   Space
		step    uint64
		largest uint64
		want    uint64
	}{
		"by the percent":      {g, Space{Used: 8 * gib, Total: 10 * gib}, 0, unlimited, 12 * gib},
		"by the least step":   {g, Space{Total: 3 * gib}, gib, unlimited, 4 * gib},
		"by more than that":   {g, Space{Total: 10 * gib}, gib, unlimited, 12 * gib},
		"by whole blocks":     {g, Space{Total: 3 * kib64}, 0, unlimited, 4 * kib64},
		"by a block at least": {Growth{Percent: 0}, Space{Total: 3 * kib64}, 0, unlimited, 4 * kib64},
		"as far as it can":    {g, Space{Total: 10 * gib}, 0, 11*gib + 1, 11 * gib},
		"not beyond that":     {g, Space{Total: 10 * gib}, 0, 10 * gib, 10 * gib},
		"never smaller":       {g, Space{Total: 10 * gib}, 0, 3 * gib, 10 * gib},
		"of a huge device":    {g, Space{Total: 1 << 60}, 0, unlimited, ((1<<60+(1<<60)/5)/kib64 + 1) * kib64},
	} {
		require.Equal(t, test.want, test.growth.Next(test.space, kib64, test.step, test.largest), name)
	}
}

func TestOverpromised(t *testing.T) {
	for name, test := range map[string]struct {
		data, metadata Space
		want           uint64
	}{
		"on the disk":         {Space{DiskFree: 5}, Space{DiskFree: 5}, 0},
		"one disk":            {Space{Holes: 4, DiskFree: 5, Disk: 7}, Space{Holes: 3, DiskFree: 5, Disk: 7}, 2},
		"a busy disk":         {Space{Holes: 4, DiskFree: 5, Disk: 7}, Space{Holes: 3, DiskFree: 4, Disk: 7}, 2},
		"two disks":           {Space{Holes: 7, DiskFree: 5, Disk: 7}, Space{Holes: 3, DiskFree: 4, Disk: 8}, 2},
		"two like each other": {Space{Holes: 4, DiskFree: 5, Disk: 7}, Space{Holes: 3, DiskFree: 5, Disk: 8}, 0},
		"metadata file":       {Space{}, Space{Holes: 3, DiskFree: 4, Disk: 7}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, test.want, Status{Data: test.data, Metadata: test.metadata}.Overpromised())
		})
	}
}
