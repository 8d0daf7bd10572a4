package plan

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/internal/adopt/builtin"
	"github.com/thinsnap/thinsnap/internal/adopt/metadb"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// randomWorld returns newWorld with more snapshots, and with random changes of records and volumes.
func randomWorld(r *rand.Rand) *world {
	w := newWorld()
	for i := range r.IntN(12) {
		s := w.in.databases.Snapshots[r.IntN(len(w.in.databases.Snapshots))]
		kind := []snapshots.Kind{snapshots.KindCommitted, snapshots.KindActive, snapshots.KindView}[r.IntN(3)]
		parent := s.Key
		if s.Kind != snapshots.KindCommitted || r.IntN(4) == 0 {
			parent = ""
		}
		w.add(kind, fmt.Sprintf("%s/%d/more", []string{"default", "k8s.io", "moby"}[r.IntN(3)], 100+i), parent, "ext4")
	}
	for range r.IntN(6) {
		change(r, w)
	}
	return w
}

func change(r *rand.Rand, w *world) {
	dbs := &w.in.databases
	if len(dbs.Snapshots) == 0 || len(dbs.Devices) == 0 {
		return
	}
	s, other := &dbs.Snapshots[r.IntN(len(dbs.Snapshots))], dbs.Snapshots[r.IntN(len(dbs.Snapshots))]
	d, otherDevice := &dbs.Devices[r.IntN(len(dbs.Devices))], dbs.Devices[r.IntN(len(dbs.Devices))]
	v := w.in.volumes[d.Name]
	defer func() { w.in.volumes[d.Name] = v }()
	switch r.IntN(22) {
	case 0:
		w.forget(s.Key)
	case 1:
		w.lose(s.Key)
	case 2:
		s.Parent = other.Key
	case 3:
		s.Parent = ""
	case 4:
		s.Kind = other.Kind
	case 5:
		s.ID = other.ID
	case 6:
		s.Labels = map[string]string{builtin.FilesystemLabel: []string{"ext4", "xfs", "ext2", "zfs"}[r.IntN(4)]}
	case 7:
		d.ID = otherDevice.ID
	case 8:
		d.Parent = otherDevice.Name
	case 9:
		d.State, dbs.IDs[d.ID] = builtin.State(r.IntN(14)), builtin.IDState(r.IntN(3))
	case 10:
		d.Bytes = uint64(r.IntN(30 * mib))
	case 11:
		i := r.IntN(len(dbs.Devices))
		dbs.Devices = append(dbs.Devices[:i:i], dbs.Devices[i+1:]...)
	case 12:
		v = volume{}
	case 13:
		v.whole = false
	case 14:
		v.superblock.NeedsRecovery = true
	case 15:
		v.superblock.UUID = noUUID
	case 16:
		v.descent = &thinmeta.Descent{Shared: r.IntN(2) == 0, Own: uint64(r.IntN(2)), Oldest: uint32(r.IntN(4))}
	case 17:
		v.unreadable = "none found"
	case 18:
		w.name(fmt.Sprintf("k8s.io/%d/more", r.IntN(10)), other.Key)
	case 19:
		for _, ns := range w.names {
			if len(ns.Snapshots) > 0 {
				ns.Snapshots[r.IntN(len(ns.Snapshots))].Parent = "more"
			}
		}
	case 20:
		w.in.mapped = append(w.in.mapped, mappedDevice{name: d.Name, shows: otherDevice.ID, openCount: r.IntN(2)})
	case 21:
		for _, ns := range w.names {
			if len(ns.Snapshots) > 0 {
				ns.Snapshots[r.IntN(len(ns.Snapshots))].Backend = other.Key
			}
		}
	}
}

// unique removes duplicates of names: in a database, a key is unique in its bucket.
func (w *world) unique() {
	for _, ns := range w.names {
		seen := make(map[string]bool)
		var kept []metadb.Snapshot
		for _, s := range ns.Snapshots {
			if !seen[s.Key] {
				seen[s.Key] = true
				kept = append(kept, s)
			}
		}
		ns.Snapshots = kept
	}
}

// TestRandomDamage: a store accepts each plan without obstacles, with any damage.
func TestRandomDamage(t *testing.T) {
	worlds := 2000
	if dmtest.Thorough() {
		worlds = 100_000
	}
	seed := rand.Uint64()
	store, possible, i := newAdoptable(t), 0, 0
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed %d, world %d", seed, i)
		}
	})
	for ; i < worlds; i++ {
		w := randomWorld(rand.New(rand.NewPCG(seed, uint64(i))))
		w.unique()
		w.in.options.LeaveOutDamaged = true
		p := w.judge()
		if !p.Possible() {
			require.NotEmpty(t, p.Obstacles)
			continue
		}
		possible++
		store.require(t, p)
	}
	require.Greater(t, possible, worlds/4)
}
