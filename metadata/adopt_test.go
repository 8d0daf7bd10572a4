package metadata

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

func committed(key, parent string, device uint32) Snapshot {
	s := active(key, parent, device)
	s.Kind, s.Usage = snapshots.KindCommitted, Usage{Bytes: 4096, Inodes: 11}
	return s
}

// someAdoption has layers "low" (3) and "high" (2) on it, "work" (7) and the view "look" on "high", "alone" (1), and
// the leftover 5.
func someAdoption() Adoption {
	return Adoption{
		Pool: PoolRecord{
			ID: "p", Mode: ModeExisting, Name: "n", BlockSize: 65536, Created: noon, Complete: true,
			Existing: ExistingPool{MappedDevice: "pool", Adopted: []AdoptedVolume{{VolumeID: 3, Filesystem: "ext4", UUID: "u"}}},
		},
		Client: ClientRecord{Number: 1, Proxy: "thinsnap", Installation: "i"},
		Snapshots: []Snapshot{
			active("work", "high", 7), viewOf("look", "high", 2), committed("high", "low", 2), committed("low", "", 3),
			active("alone", "", 1),
		},
		Kept: []KeptRecord{{VolumeID: 5, Mapped: 1, Size: 2, Found: noon}},
	}
}

func adopt(t *testing.T, s *Store, a Adoption) error {
	t.Helper()
	return s.Update(t.Context(), func(tx *Tx) error { return tx.Adopt(a) })
}

func requireClean(t *testing.T, s *Store) {
	t.Helper()
	problems, err := s.Check(t.Context())
	require.NoError(t, err)
	require.Empty(t, problems)
}

func TestAdopt(t *testing.T) {
	s := newStore(t, Options{})
	a := someAdoption()
	require.NoError(t, adopt(t, s, a))
	requireClean(t, s)
	witness := Witness{VolumeID: 3, Size: 10 << 30, Filesystem: "ext4", UUID: "u"}
	update(t, s, func(tx *Tx) {
		for _, want := range a.Snapshots {
			got, err := tx.Get(want.Key)
			require.NoError(t, err)
			want.Client = 1
			require.Equal(t, want, got)
		}
		require.ElementsMatch(t, []string{"look", "work"}, children(t, tx, "high"))
		count, err := tx.CountByKind()
		require.NoError(t, err)
		require.Equal(t, KindCounts{Views: 1, Active: 2, Committed: 2}, count)
		pool, err := tx.Pool()
		require.NoError(t, err)
		require.Equal(t, a.Pool, pool)
		require.False(t, pool.Identified())
		client, err := tx.Client("")
		require.NoError(t, err)
		require.Equal(t, a.Client.Installation, client.Installation)
		require.Equal(t, 1, tx.KeptCount())
		used, left, err := tx.DeviceIDs()
		require.NoError(t, err)
		require.Zero(t, used)
		require.EqualValues(t, MaxDevice+1-FirstInForeign, left)
		witnesses, err := tx.AdoptedWitnesses()
		require.NoError(t, err)
		require.Equal(t, []Witness{witness}, witnesses)

		lease, err := tx.Lease(4)
		require.NoError(t, err)
		require.EqualValues(t, FirstInForeign, lease.First)
		require.NoError(t, tx.Create(active("new", "high", lease.First)))
		require.ErrorIs(t, tx.Create(active("low-id", "high", 9)), errdefs.ErrFailedPrecondition)
		_, err = tx.Commit("done", "work", CommitChange{Now: noon})
		require.NoError(t, err)
	})
	requireClean(t, s)
	require.NoError(t, s.Rebuild(t.Context()))
	update(t, s, func(tx *Tx) {
		for _, key := range []string{"new", "done", "look", "high", "low"} {
			_, err := tx.Remove(key, noon)
			require.NoError(t, err)
		}
		witnesses, err := tx.AdoptedWitnesses()
		require.NoError(t, err)
		require.Empty(t, witnesses)
		require.NoError(t, tx.DiscardKept(5, noon))
		require.NoError(t, tx.ClearTrash(7))
	})
	requireClean(t, s)
}

// The error of an inconsistent adoption names the record, and nothing is stored.
func TestAdoptRefuses(t *testing.T) {
	for name, change := range map[string]func(*Adoption){
		"listed twice":                       func(a *Adoption) { a.Snapshots = append(a.Snapshots, a.Snapshots[1]) },
		"empty snapshot key":                 func(a *Adoption) { a.Snapshots[0].Key = "" },
		`snapshot "work" has kind`:           func(a *Adoption) { a.Snapshots[0].Kind = 0 },
		`view "look" has no parent`:          func(a *Adoption) { a.Snapshots[1].Parent = "" },
		`snapshot "work" has device 0`:       func(a *Adoption) { a.Snapshots[0].VolumeID = 0 },
		`snapshot "work" has device 8388608`: func(a *Adoption) { a.Snapshots[0].VolumeID = FirstInForeign },
		`snapshot "work" has no size`:        func(a *Adoption) { a.Snapshots[0].Size = 0 },
		`snapshot "work" has file system`:    func(a *Adoption) { a.Snapshots[0].Filesystem = "" },
		`snapshot "work" has a base volume`:  func(a *Adoption) { a.Snapshots[0].Base = 4 },
		`"nothing" does not exist`:           func(a *Adoption) { a.Snapshots[0].Parent = "nothing" },
		`parent "alone" is not committed`:    func(a *Adoption) { a.Snapshots[0].Parent = "alone" },
		`parent "high" has "ext4"`:           func(a *Adoption) { a.Snapshots[0].Filesystem = "xfs" },
		`parent "high" has 10737418240`:      func(a *Adoption) { a.Snapshots[0].Size = 1 << 30 },
		"shows device 3":                     func(a *Adoption) { a.Snapshots[1].VolumeID = 3 },
		"is its own ancestor":                func(a *Adoption) { a.Snapshots[3].Parent = "high" },
		"has a usage":                        func(a *Adoption) { a.Snapshots[0].Usage.Bytes = 1 },
		`device 1: is owned by snapshot`:     func(a *Adoption) { a.Snapshots[0].VolumeID = 1 },
		"device 7 is owned":                  func(a *Adoption) { a.Kept[0].VolumeID = 7 },
		"leftover device 8388608":            func(a *Adoption) { a.Kept[0].VolumeID = FirstInForeign },
		"not a complete one":                 func(a *Adoption) { a.Pool.Complete = false },
		"identified by 0 volumes":            func(a *Adoption) { a.Pool.Existing.Adopted = nil },
		"identified by 17 volumes": func(a *Adoption) {
			a.Pool.Existing.Adopted = slices.Repeat(a.Pool.Existing.Adopted, MaxAdopted+1)
		},
		"identifies the pool twice": func(a *Adoption) {
			a.Pool.Existing.Adopted = slices.Repeat(a.Pool.Existing.Adopted, 2)
		},
		"without a UUID":        func(a *Adoption) { a.Pool.Existing.Adopted[0].UUID = "" },
		"to no committed":       func(a *Adoption) { a.Pool.Existing.Adopted[0].VolumeID = 7 },
		"has no id":             func(a *Adoption) { a.Pool.ID = "" },
		"it needs a proxy name": func(a *Adoption) { a.Client.Proxy = "" },
		"and the number 1":      func(a *Adoption) { a.Client.Number = 2 },
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, Options{})
			a := someAdoption()
			change(&a)
			err := adopt(t, s, a)
			require.ErrorContains(t, err, name)
			require.True(t, errdefs.IsInvalidArgument(err) || errdefs.IsFailedPrecondition(err), "%v", err)
			require.NoError(t, adopt(t, s, someAdoption()), "nothing was stored")
		})
	}
}

func TestAdoptNeedsAnEmptyStore(t *testing.T) {
	require.ErrorIs(t, adopt(t, furnished(t), someAdoption()), errdefs.ErrFailedPrecondition)
	for name, change := range map[string]func(*Tx) error{
		"pool":   func(tx *Tx) error { return tx.SetPool(PoolRecord{ID: "p", Mode: ModeLoop}) },
		"client": func(tx *Tx) error { return tx.SetClient("", ClientRecord{Number: 1}) },
		"lease": func(tx *Tx) error {
			_, err := tx.Lease(1)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, Options{})
			require.NoError(t, s.Update(t.Context(), change))
			require.ErrorIs(t, adopt(t, s, someAdoption()), errdefs.ErrFailedPrecondition)
		})
	}
}

// In a pool without adopted volumes, an owned id below FirstInForeign is a problem.
func TestCheckKnowsAdoptedIDs(t *testing.T) {
	s := newStore(t, Options{})
	require.NoError(t, adopt(t, s, someAdoption()))
	pool := someAdoption().Pool
	pool.Existing.Adopted = nil
	update(t, s, func(tx *Tx) { require.NoError(t, tx.SetPool(pool)) })
	problems, err := s.Check(t.Context())
	require.NoError(t, err)
	require.Len(t, problems, 5)
	require.Contains(t, problems[0].String(), "were leased")
	update(t, s, func(tx *Tx) { require.NoError(t, tx.SetPool(someAdoption().Pool)) })
}

// 10,000 snapshots, in chains of ten, in one transaction, which takes half a second on a slow disk.
func TestAdoptMany(t *testing.T) {
	a := someAdoption()
	for i := range uint32(10_000) {
		s := committed(fmt.Sprintf("default/%d/sha256:%064x", i, i), "", 10+i)
		if i%10 > 0 {
			s.Parent = fmt.Sprintf("default/%d/sha256:%064x", i-1, i-1)
		}
		s.Labels = map[string]string{"containerd.io/snapshot.ref": s.Key}
		a.Snapshots = append(a.Snapshots, s)
	}
	s := newStore(t, Options{})
	begun := time.Now()
	require.NoError(t, adopt(t, s, a))
	t.Logf("adopted %d snapshots in %v", len(a.Snapshots), time.Since(begun))
	requireClean(t, s)
	require.EqualValues(t, 1, s.Stats().Transactions)
}
