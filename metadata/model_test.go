package metadata

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

// A model implements the store with maps and without indexes.
type model struct {
	snapshots map[string]Snapshot
	bases     map[string]BaseRecord
	trash     map[uint32]TrashRecord
	leases    []LeaseRecord
	next      uint32
	txid      uint64

	first   uint32 // lowest id that can be leased
	adopted bool
	spaces  []string // key spaces; empty for the default one alone
}

// newModel is a store whose pool is not foreign.
func newModel() *model {
	return &model{
		snapshots: make(map[string]Snapshot), bases: make(map[string]BaseRecord), trash: make(map[uint32]TrashRecord),
		next: 1, first: 1,
	}
}

// newAdoptedModel is a store with adopted snapshots.
func newAdoptedModel() (*model, Adoption) {
	m, a := newModel(), someAdoption()
	m.next, m.first, m.adopted = FirstInForeign, FirstInForeign, true
	a.Kept = nil
	for i, s := range []Snapshot{committed("k0", "", 3), committed("k1", "k0", 2), active("k2", "k1", 7), viewOf("k3", "k1", 2)} {
		s.Size, s.Client = uint64(min(i+1, 2)), 1
		m.snapshots[s.Key] = s
	}
	a.Snapshots = slices.Collect(maps.Values(m.snapshots))
	return m, a
}

func (m *model) clone() *model {
	c := *m
	c.snapshots, c.bases, c.trash = maps.Clone(m.snapshots), maps.Clone(m.bases), maps.Clone(m.trash)
	c.leases = slices.Clone(m.leases)
	return &c
}

// device returns a random id, mostly one that was leased or adopted.
func (m *model) device(r *rand.Rand) uint32 {
	if m.adopted && r.IntN(2) == 0 {
		return uint32(1 + r.IntN(9))
	}
	return m.first + uint32(r.IntN(int(m.next-m.first)+3))
}

// ids returns all ids that can be owned, and some more.
func (m *model) ids() (all []uint32) {
	if m.adopted {
		for id := range uint32(10) {
			all = append(all, id)
		}
	}
	for id := m.first - 1; id < m.next+2; id++ {
		all = append(all, id)
	}
	return all
}

// stamp adds one to the transaction id, unless the pool is foreign.
func (m *model) stamp() {
	if !m.adopted {
		m.txid++
	}
}

// key returns a random key; each key space has the same ones.
func (m *model) key(r *rand.Rand) string {
	key := fmt.Sprintf("k%d", r.IntN(30))
	if len(m.spaces) == 0 {
		return key
	}
	return KeyPrefix(m.spaces[r.IntN(len(m.spaces))]) + key
}

func crosses(key, other string) bool {
	space, _ := SplitKey(key)
	of, _ := SplitKey(other)
	return space != of
}

// own records the client's number in a snapshot.
func (m *model) own(s *Snapshot) {
	if space, _ := SplitKey(s.Key); space != "" {
		s.Client = uint64(len(space))
		return
	}
	if m.adopted {
		s.Client = 1
	}
}

func (m *model) owner(id uint32) (Owner, bool) {
	for _, s := range m.snapshots {
		if s.VolumeID == id && s.Kind != snapshots.KindView {
			return Owner{OwnerSnapshot, s.Key}, true
		}
	}
	for name, b := range m.bases {
		if b.VolumeID == id {
			return Owner{OwnerBase, name}, true
		}
	}
	if _, ok := m.trash[id]; ok {
		return Owner{Kind: OwnerTrash}, true
	}
	return Owner{}, false
}

func (m *model) claim(id uint32) error {
	_, owned := m.owner(id)
	in := func(l LeaseRecord) bool { return l.First <= id && id <= l.Last }
	if owned || !slices.ContainsFunc(m.leases, in) {
		return errdefs.ErrFailedPrecondition
	}
	return nil
}

func (m *model) disown(id uint32) {
	var leases []LeaseRecord
	for _, l := range m.leases {
		if id < l.First || l.Last < id {
			leases = append(leases, l)
			continue
		}
		if l.First < id {
			leases = append(leases, LeaseRecord{First: l.First, Last: id - 1})
		}
		if id < l.Last {
			leases = append(leases, LeaseRecord{First: id + 1, Last: l.Last})
		}
	}
	m.leases = leases
}

func (m *model) children(key string) (all []string) {
	for _, s := range m.snapshots {
		if s.Parent == key {
			all = append(all, s.Key)
		}
	}
	return all
}

func (m *model) create(s Snapshot) error {
	parent, ok := m.snapshots[s.Parent]
	_, taken := m.snapshots[s.Key]
	switch {
	case s.Parent != "" && crosses(s.Key, s.Parent):
		return errdefs.ErrInvalidArgument
	case s.Parent != "" && !ok:
		return errdefs.ErrNotFound
	case s.Parent != "" && parent.Kind != snapshots.KindCommitted:
		return errdefs.ErrInvalidArgument
	case taken:
		return errdefs.ErrAlreadyExists
	case s.Kind == snapshots.KindActive:
		if err := m.claim(s.VolumeID); err != nil {
			return err
		}
		if s.Parent != "" && s.Size < parent.Size {
			return errdefs.ErrInvalidArgument
		}
	case s.Parent != "":
		if s.VolumeID != parent.VolumeID || s.Size != parent.Size {
			return errdefs.ErrFailedPrecondition
		}
	default:
		if b, ok := m.bases[baseName("ext4", s.Size)]; !ok || b.VolumeID != s.VolumeID {
			return errdefs.ErrFailedPrecondition
		}
	}
	m.own(&s)
	m.snapshots[s.Key] = s
	return nil
}

func (m *model) discardBase(size uint64, now time.Time) error {
	name := baseName("ext4", size)
	b, ok := m.bases[name]
	if !ok {
		return errdefs.ErrNotFound
	}
	for _, s := range m.snapshots {
		if s.Kind == snapshots.KindView && s.VolumeID == b.VolumeID {
			return errdefs.ErrFailedPrecondition
		}
	}
	delete(m.bases, name)
	m.trash[b.VolumeID] = TrashRecord{VolumeID: b.VolumeID, Size: size, Key: "base volume " + name, Filesystem: "ext4", Since: now}
	return nil
}

func (m *model) commit(name, key string, c CommitChange) error {
	s, ok := m.snapshots[key]
	_, taken := m.snapshots[name]
	switch {
	case crosses(name, key):
		return errdefs.ErrInvalidArgument
	case taken:
		return errdefs.ErrAlreadyExists
	case !ok:
		return errdefs.ErrNotFound
	case s.Kind != snapshots.KindActive:
		return errdefs.ErrFailedPrecondition
	}
	old := s
	s.Key, s.Kind, s.Labels, s.Usage, s.Created, s.Updated = name, snapshots.KindCommitted, c.Labels, c.Usage, c.Now, c.Now
	if c.VolumeID != 0 && c.VolumeID != s.VolumeID {
		if err := m.claim(c.VolumeID); err != nil {
			return err
		}
		s.VolumeID = c.VolumeID
		m.trash[old.VolumeID] = TrashRecord{old.VolumeID, old.Size, key, "ext4", c.Now}
	}
	m.stamp()
	m.own(&s)
	delete(m.snapshots, key)
	m.snapshots[name] = s
	return nil
}

func (m *model) remove(key string, now time.Time) error {
	s, ok := m.snapshots[key]
	switch {
	case !ok:
		return errdefs.ErrNotFound
	case len(m.children(key)) > 0:
		return errdefs.ErrFailedPrecondition
	case s.Kind != snapshots.KindView:
		m.trash[s.VolumeID] = TrashRecord{s.VolumeID, s.Size, key, "ext4", now}
	}
	delete(m.snapshots, key)
	return nil
}

// step runs one random operation on both, and returns their errors.
func step(r *rand.Rand, m *model, tx *Tx) (got, want error) {
	key := func() string { return m.key(r) }
	device := func() uint32 { return m.device(r) }
	now := noon.Add(time.Duration(r.IntN(1000)) * time.Second)
	switch r.IntN(22) {
	case 21:
		size := uint64(1 + r.IntN(3))
		_, got = tx.DiscardBase("ext4", size, now)
		return got, m.discardBase(size, now)
	case 20:
		id := device()
		if _, owned := m.owner(id); owned {
			return tx.Disown(id), errdefs.ErrFailedPrecondition
		}
		m.disown(id)
		return tx.Disown(id), nil
	case 0:
		n := uint32(1 + r.IntN(5))
		l, err := tx.Lease(n)
		m.leases = append(m.leases, LeaseRecord{First: m.next, Last: m.next + n - 1})
		if l != m.leases[len(m.leases)-1] {
			err = fmt.Errorf("leased %v: %w", l, err)
		}
		m.next += n
		m.stamp()
		return err, nil
	case 1:
		first := device()
		i := slices.IndexFunc(m.leases, func(l LeaseRecord) bool { return l.First == first })
		if i < 0 {
			return tx.CloseLease(first), errdefs.ErrNotFound
		}
		m.leases = slices.Delete(m.leases, i, i+1)
		return tx.CloseLease(first), nil
	case 2:
		b := BaseRecord{Filesystem: "ext4", Size: uint64(1 + r.IntN(3)), VolumeID: device(), Created: now}
		got = tx.SetBase(b)
		name := baseName("ext4", b.Size)
		if old, ok := m.bases[name]; ok && old.VolumeID != b.VolumeID {
			return got, errdefs.ErrAlreadyExists
		} else if !ok {
			if err := m.claim(b.VolumeID); err != nil {
				return got, err
			}
		}
		m.bases[name] = b
		return got, nil
	case 3, 4:
		id := device()
		if len(m.trash) > 0 && r.IntN(3) > 0 {
			id = slices.Sorted(maps.Keys(m.trash))[0]
		}
		if _, ok := m.trash[id]; !ok {
			return tx.ClearTrash(id), errdefs.ErrNotFound
		}
		delete(m.trash, id)
		return tx.ClearTrash(id), nil
	case 5, 6, 7, 8, 9:
		s := Snapshot{Key: key(), Kind: snapshots.KindActive, VolumeID: device(), Size: uint64(1 + r.IntN(3)), Filesystem: "ext4", Created: now, Updated: now}
		if r.IntN(3) > 0 {
			s.Parent = key()
		}
		return tx.Create(s), m.create(s)
	case 10, 11, 12:
		s := Snapshot{Key: key(), Kind: snapshots.KindView, VolumeID: device(), Size: uint64(1 + r.IntN(3)), Filesystem: "ext4", Created: now, Updated: now}
		if r.IntN(4) > 0 {
			s.Parent = key()
			s.VolumeID, s.Size = m.snapshots[s.Parent].VolumeID, m.snapshots[s.Parent].Size
		}
		return tx.Create(s), m.create(s)
	case 13, 14, 15:
		c := CommitChange{Now: now, Usage: Usage{Bytes: r.Int64(), Inodes: r.Int64(), Own: r.Int64(), Exact: r.IntN(2) == 0}, Labels: map[string]string{"l": key()}}
		if r.IntN(3) == 0 {
			c.VolumeID = device()
		}
		name, k := key(), key()
		_, got = tx.Commit(name, k, c)
		return got, m.commit(name, k, c)
	case 16, 17, 18:
		k := key()
		_, got = tx.Remove(k, now)
		return got, m.remove(k, now)
	default:
		k, labels := key(), map[string]string{key(): key()}
		_, got = tx.SetLabels(k, labels, now)
		s, ok := m.snapshots[k]
		if !ok {
			return got, errdefs.ErrNotFound
		}
		s.Labels, s.Updated = labels, now
		m.snapshots[k] = s
		return got, nil
	}
}

func compare(t *testing.T, m *model, tx *Tx) {
	t.Helper()
	all := make(map[string]Snapshot)
	var counts KindCounts
	require.NoError(t, tx.ForEach(func(s Snapshot) error { all[s.Key] = s; return nil }))
	require.Equal(t, m.snapshots, all)
	for _, s := range all {
		switch s.Kind {
		case snapshots.KindView:
			counts.Views++
		case snapshots.KindActive:
			counts.Active++
		default:
			counts.Committed++
		}
		require.ElementsMatch(t, m.children(s.Key), children(t, tx, s.Key))
	}
	got, err := tx.CountByKind()
	require.NoError(t, err)
	require.Equal(t, counts, got)
	compareSpaces(t, m, tx)

	trash, err := tx.Trash()
	require.NoError(t, err)
	require.ElementsMatch(t, slices.Collect(maps.Values(m.trash)), trash)
	n, err := tx.TrashCount()
	require.NoError(t, err)
	require.Equal(t, len(m.trash), n)
	bases, err := tx.Bases()
	require.NoError(t, err)
	require.ElementsMatch(t, slices.Collect(maps.Values(m.bases)), bases)
	leases, err := tx.Leases()
	require.NoError(t, err)
	require.ElementsMatch(t, m.leases, leases)
	pool, err := tx.Pool()
	require.NoError(t, err)
	require.Equal(t, m.txid, pool.TransactionID)
	witnesses, err := tx.AdoptedWitnesses()
	require.NoError(t, err)
	owner, _ := m.owner(3)
	require.Equal(t, m.adopted && m.snapshots[owner.Key].Kind == snapshots.KindCommitted, len(witnesses) == 1)
	for _, id := range m.ids() {
		want, wantOK := m.owner(id)
		got, ok := tx.Owner(id)
		require.Equal(t, wantOK, ok)
		require.Equal(t, want, got)
		views := 0
		for _, s := range all {
			if s.Kind == snapshots.KindView && s.VolumeID == id {
				views++
			}
		}
		n, err := tx.Views(id)
		require.NoError(t, err)
		require.Equal(t, views, n)
	}
}

// TestModel runs thousands of random operations, valid and invalid, and compares the store with the
// model.
func TestModel(t *testing.T) {
	undo := errors.New("undo")
	for seed := range uint64(16) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(seed, 1))
			path := filepath.Join(t.TempDir(), "metadata.db")
			s := openStore(t, path, Options{})
			m := newModel()
			if seed >= 12 {
				m.spaces = []string{"", "k3s", "k3s-2"}
				update(t, s, func(tx *Tx) {
					require.NoError(t, tx.SetClient("k3s", ClientRecord{Number: 3}))
					require.NoError(t, tx.SetClient("k3s-2", ClientRecord{Number: 5}))
				})
			}
			if seed < 8 || seed >= 12 {
				update(t, s, func(tx *Tx) { require.NoError(t, tx.SetPool(PoolRecord{ID: "p", Mode: "loop"})) })
			} else {
				var a Adoption
				m, a = newAdoptedModel()
				require.NoError(t, adopt(t, s, a))
			}
			worked := 0
			for i := range 300 {
				next, keep, steps := m.clone(), r.IntN(5) > 0, 1+r.IntN(10)
				err := s.Update(t.Context(), func(tx *Tx) error {
					for range steps {
						got, want := step(r, next, tx)
						if want == nil {
							require.NoError(t, got)
							worked++
						} else {
							require.ErrorIs(t, got, want)
						}
					}
					if !keep {
						return undo
					}
					return nil
				})
				if keep {
					require.NoError(t, err)
					m = next
				} else {
					require.ErrorIs(t, err, undo)
				}
				if i%50 == 49 {
					require.NoError(t, s.Close())
					s = openStore(t, path, Options{})
				}
				if i%10 == 9 {
					view(t, s, func(tx *Tx) { compare(t, m, tx) })
				}
			}
			if len(m.spaces) == 0 { // otherwise most parents are in another key space
				require.Greater(t, worked, 200)
			} else {
				require.Greater(t, worked, 60)
			}
		})
	}
}
