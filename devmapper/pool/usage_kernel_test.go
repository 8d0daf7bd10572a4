package pool_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/dmtest/thintools"
)

// TestUsageAndExclusiveAreThoseOfThinDump measures every volume of pools from the kernel.
func TestUsageAndExclusiveAreThoseOfThinDump(t *testing.T) {
	skipIfShort(t)
	pools := 2
	if dmtest.Thorough() {
		pools = 40
	}
	for range pools {
		t.Run("", func(t *testing.T) {
			control, spec := newSpec(t)
			ctx := t.Context()
			p, err := spec.Open(ctx, control, false)
			require.NoError(t, err)
			s := newScribbler(t, p)
			s.fill(16)
			origins, usages, exclusive := map[thin.ID]thin.ID{}, map[thin.ID]pool.Usage{}, map[thin.ID]uint64{}
			for _, id := range s.ids {
				if s.r.IntN(5) > 0 {
					origins[id] = s.any()
				}
				usages[id], err = p.Usage(ctx, id, origins[id], 0)
				require.NoError(t, err)
				again, err := p.Usage(ctx, id, origins[id], time.Hour)
				require.NoError(t, err)
				require.Equal(t, usages[id], again)
				exclusive[id], err = p.Exclusive(ctx, id)
				require.NoError(t, err)
			}
			require.NoError(t, p.Close(ctx))
			all := thintools.Dump(t, spec.MetadataFile)
			users := map[uint64]int{}
			for _, mapped := range all {
				for _, data := range mapped {
					users[data]++
				}
			}
			for _, id := range s.ids {
				want, wantExclusive := pool.Usage{Mapped: uint64(len(all[id])) * blockBytes}, uint64(0)
				for virtual, data := range all[id] {
					from, both := all[origins[id]][virtual]
					if !both || from != data {
						want.Own += blockBytes
					}
					if users[data] == 1 {
						wantExclusive += blockBytes
					}
				}
				require.Equal(t, want, usages[id], "volume %d, origin %d", id, origins[id])
				require.Equal(t, wantExclusive, exclusive[id], "volume %d", id)
			}
		})
	}
}

// TestUsageOfABusyPool measures volumes while they and other volumes change.
func TestUsageOfABusyPool(t *testing.T) {
	skipIfShort(t)
	ctx := t.Context()
	_, p, s := scribbledPool(t)
	require.NoError(t, p.CreateSnap(ctx, 2, 1))
	s.change(2, 30)
	want, err := p.Usage(ctx, 2, 1, 0)
	require.NoError(t, err)
	require.Positive(t, want.Own)
	exclusive, err := p.Exclusive(ctx, 2)
	require.NoError(t, err)
	require.Equal(t, want.Own, exclusive)

	busy := &busyContext{Context: ctx, change: s.commits(2)}
	got, err := p.Usage(busy, 2, 1, 0)
	require.NoError(t, err)
	require.NoError(t, busy.err)
	require.Equal(t, want, got)
	_, err = p.Exclusive(busy, 2)
	require.ErrorIs(t, err, pool.ErrUnknown)
	status, err := p.Status(ctx)
	require.NoError(t, err)
	require.Zero(t, status.HeldRoot)

	// A piece is read again if the pool commits meanwhile.
	reads, commit := 0, busy.change
	some := &busyContext{Context: ctx, change: func() error {
		if reads++; reads%9 != 0 {
			return nil
		}
		return commit()
	}}
	got, err = p.Usage(some, 2, 1, 0)
	require.NoError(t, err)
	require.NoError(t, some.err)
	require.Equal(t, want, got)
	require.Greater(t, reads, 18)
	if err := p.Delete(ctx, 1000); !errors.Is(err, thin.ErrNoDevice) {
		require.NoError(t, err)
	}

	require.NoError(t, p.ReadMetadata(ctx, func(*thinmeta.Metadata) error {
		_, err := p.Exclusive(ctx, 2)
		require.ErrorIs(t, err, pool.ErrUnknown)
		got, err = p.Usage(ctx, 2, 1, 0)
		require.NoError(t, err)
		require.Equal(t, want, got)
		return nil
	}))

	// Of two volumes with one tree, neither has exclusive blocks, but together they have all that
	// both map.
	require.NoError(t, p.CreateSnap(ctx, 3, 2))
	exclusive, err = p.Exclusive(ctx, 2)
	require.NoError(t, err)
	require.Zero(t, exclusive)
	exclusive, err = p.Exclusive(ctx, 2, 3)
	require.NoError(t, err)
	require.Equal(t, want.Own, exclusive)

	for _, call := range []func(id thin.ID) error{
		func(id thin.ID) error { _, err := p.Usage(ctx, id, 0, 0); return err },
		func(id thin.ID) error { _, err := p.Usage(ctx, id, 1, 0); return err },
		func(id thin.ID) error { _, err := p.Usage(ctx, 1, id, 0); return err },
		func(id thin.ID) error { _, err := p.Usage(ctx, id, 1, time.Hour); return err },
		func(id thin.ID) error { _, err := p.Exclusive(ctx, id); return err },
	} {
		require.ErrorIs(t, call(999), thin.ErrNoDevice)
	}
}

// TestCostOfAPoll counts the cost of measuring 200 volumes: no commit, and fewer ioctls than a
// status of each volume takes. All volumes without new writes share one read of the metadata.
func TestCostOfAPoll(t *testing.T) {
	skipIfShort(t)
	const volumes, written = 200, 40
	ctx := t.Context()
	control, p, s := scribbledPool(t)
	for id := thin.ID(2); id < volumes+2; id++ {
		require.NoError(t, p.CreateSnap(ctx, id, 1))
		if id < written+2 {
			s.change(id, 1)
		}
	}
	backing, err := p.Backing()
	require.NoError(t, err)
	metadataReads := func() int {
		text, err := os.ReadFile(filepath.Join("/sys/dev/block", backing.MetadataDevice, "stat"))
		require.NoError(t, err)
		n, err := strconv.Atoi(strings.Fields(string(text))[0])
		require.NoError(t, err)
		return n
	}
	forget := func() { // the recent states
		_, err = p.Usage(ctx, 2, 1, 0)
		require.NoError(t, err)
	}
	poll := func(what string) (ioctls uint64, reads int) {
		before, err := p.Committed(ctx)
		require.NoError(t, err)
		calls, readsBefore := control.Calls(), metadataReads()
		for id := thin.ID(2); id < volumes+2; id++ {
			_, err := p.Usage(ctx, id, 1, time.Minute)
			require.NoError(t, err)
		}
		ioctls, reads = control.Calls()-calls, metadataReads()-readsBefore
		t.Logf("a poll of %d volumes, %s: %d ioctls, %d reads", volumes, what, ioctls, reads)
		after, err := p.Committed(ctx)
		require.NoError(t, err)
		require.Equal(t, before, after, "no commit")
		return ioctls, reads
	}
	ioctls, reads := poll(fmt.Sprintf("%d of which were written to", written))
	require.LessOrEqual(t, ioctls, uint64(written+8))
	require.LessOrEqual(t, reads, 20*written+50)
	ioctls, reads = poll("again at once")
	require.Zero(t, ioctls)
	require.Zero(t, reads)
	forget()
	ioctls, reads = poll("later")
	// The volumes are in few leaves of two trees.
	require.LessOrEqual(t, ioctls, uint64(4))
	require.LessOrEqual(t, reads, 50)
	forget()
	s.change(3, 20)
	forget()
	ioctls, reads = poll("one of which was written to")
	require.LessOrEqual(t, ioctls, uint64(5))
	require.LessOrEqual(t, reads, 100)

	for id := thin.ID(2); id < written+2; id++ {
		_, err := p.Activate(ctx, id, volumeBytes, true)
		require.NoError(t, err)
	}
	calls := control.Calls()
	active, err := p.Active(ctx)
	require.NoError(t, err)
	require.Len(t, active, written)
	for _, v := range active {
		_, err := p.Mapped(ctx, v.ID)
		require.NoError(t, err)
	}
	require.Greater(t, control.Calls()-calls, uint64(2*written), "the kernel's status takes more ioctls")
}
