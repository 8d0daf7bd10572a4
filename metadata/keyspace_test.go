package metadata

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

// compareSpaces compares the snapshots and counters of each key space, in pages and as a whole.
func compareSpaces(t *testing.T, m *model, tx *Tx) {
	t.Helper()
	var total KindCounts
	for _, space := range append(tx.KeySpaces(), "") {
		own := make(map[string]Snapshot)
		for key, s := range m.snapshots {
			if of, _ := SplitKey(key); of == space {
				own[key] = s
			}
		}
		all, paged := make(map[string]Snapshot), make(map[string]Snapshot)
		require.NoError(t, tx.ForEachIn(space, func(s Snapshot) error { all[s.Key] = s; return nil }))
		require.Equal(t, own, all)
		for after, more := "", true; more; {
			var page []Snapshot
			var err error
			page, more, err = tx.After(after, Page{Records: 3, Bytes: 1 << 20, Space: &space})
			require.NoError(t, err)
			for _, s := range page {
				paged[s.Key], after = s, s.Key
			}
		}
		require.Equal(t, own, paged)
		counts, err := tx.CountByKindIn(space)
		require.NoError(t, err)
		require.Equal(t, len(own), counts.Total())
		total.Views, total.Active, total.Committed =
			total.Views+counts.Views, total.Active+counts.Active, total.Committed+counts.Committed
	}
	counts, err := tx.CountByKind()
	require.NoError(t, err)
	require.Equal(t, counts, total)
}

// Equal keys of several clients are different snapshots, each with the number of its own client.
func TestKeySpacesAreApart(t *testing.T) {
	s := newStore(t, Options{})
	update(t, s, func(tx *Tx) {
		_, err := tx.Lease(10)
		require.NoError(t, err)
		require.NoError(t, tx.SetClient("", ClientRecord{Number: 7}))
		require.NoError(t, tx.SetClient("k3s", ClientRecord{Number: 2}))
		require.NoError(t, tx.Create(active("a", "", 1)))
		require.NoError(t, tx.Create(active("\xffk3s/a", "", 2)))
		_, err = tx.Commit("\xffk3s/b", "\xffk3s/a", CommitChange{Now: noon})
		require.NoError(t, err)
		require.NoError(t, tx.Create(active("\xffk3s/a", "\xffk3s/b", 3)))
	})
	view(t, s, func(tx *Tx) {
		require.Equal(t, []string{"k3s"}, tx.KeySpaces())
		for key, client := range map[string]uint64{"a": 7, "\xffk3s/a": 2, "\xffk3s/b": 2} {
			snapshot, err := tx.Get(key)
			require.NoError(t, err)
			require.Equal(t, client, snapshot.Client, key)
		}
		counts, err := tx.CountByKindIn("")
		require.NoError(t, err)
		require.Equal(t, KindCounts{Active: 1}, counts)
		counts, err = tx.CountByKindIn("k3s")
		require.NoError(t, err)
		require.Equal(t, KindCounts{Active: 1, Committed: 1}, counts)
	})
	for _, refused := range []func(tx *Tx) error{
		func(tx *Tx) error { return tx.Create(active("c", "\xffk3s/b", 4)) },
		func(tx *Tx) error { _, err := tx.Commit("c", "\xffk3s/a", CommitChange{Now: noon}); return err },
		func(tx *Tx) error { return tx.Create(active("\xff", "", 4)) },
		func(tx *Tx) error { return tx.Create(active("\xffk3s/", "", 4)) },
		func(tx *Tx) error { return tx.Create(active("\xffk3s/\xffa", "", 4)) },
		func(tx *Tx) error { return tx.Create(active("\xffK3S/a", "", 4)) },
	} {
		require.ErrorIs(t, s.Update(t.Context(), refused), errdefs.ErrInvalidArgument)
	}
	for _, refused := range []func(tx *Tx) error{
		func(tx *Tx) error { return tx.Create(active("\xffnever/a", "", 4)) },
		func(tx *Tx) error { return tx.DropKeySpace("k3s") },
	} {
		require.ErrorIs(t, s.Update(t.Context(), refused), errdefs.ErrFailedPrecondition)
	}
	update(t, s, func(tx *Tx) {
		for _, key := range []string{"\xffk3s/a", "\xffk3s/b"} {
			_, err := tx.Remove(key, noon)
			require.NoError(t, err)
		}
		require.NoError(t, tx.DropKeySpace("k3s"))
		require.ErrorIs(t, tx.DropKeySpace("k3s"), errdefs.ErrNotFound)
		require.ErrorIs(t, tx.DropKeySpace(""), errdefs.ErrInvalidArgument)
		require.Empty(t, tx.KeySpaces())
		require.True(t, tx.Exists("a"))
	})
}

// contents returns all pairs of a store, by bucket.
func contents(t *testing.T, s *Store) map[string]string {
	t.Helper()
	all := make(map[string]string)
	require.NoError(t, s.db.View(func(tx *bolt.Tx) error {
		root := tx.Bucket(bucketRoot)
		return root.ForEachBucket(func(name []byte) error {
			return root.Bucket(name).ForEach(func(k, v []byte) error {
				all[fmt.Sprintf("%s %q", name, k)] = fmt.Sprintf("%q", v)
				return nil
			})
		})
	}))
	return all
}

// After its last further key space is dropped, a store has its former format and content.
func TestStoreAfterItsLastKeySpace(t *testing.T) {
	s := furnished(t)
	update(t, s, func(tx *Tx) { require.NoError(t, tx.SetClient("", ClientRecord{Number: 7})) })
	before := contents(t, s)
	schema := func() (version uint64) {
		view(t, s, func(tx *Tx) {
			var err error
			version, err = schemaOf(tx.buckets.meta)
			require.NoError(t, err)
		})
		return version
	}
	for range 2 {
		for _, space := range []string{"k3s", "k3s-2"} {
			update(t, s, func(tx *Tx) { require.NoError(t, tx.SetClient(space, ClientRecord{Number: 2})) })
		}
		require.EqualValues(t, schemaVersion, schema())
		update(t, s, func(tx *Tx) {
			require.NoError(t, tx.Create(active("\xffk3s/a", "", 6)))
			_, err := tx.Commit("\xffk3s/b", "\xffk3s/a", CommitChange{Now: noon})
			require.NoError(t, err)
			require.NoError(t, tx.Create(active("\xffk3s/a", "\xffk3s/b", 7)))
			require.NoError(t, tx.Create(active("other", "", 8)))
		})
		update(t, s, func(tx *Tx) {
			for _, key := range []string{"\xffk3s/a", "\xffk3s/b", "other"} {
				_, err := tx.Remove(key, noon)
				require.NoError(t, err)
			}
		})
		update(t, s, func(tx *Tx) { require.NoError(t, tx.DropKeySpace("k3s")) })
		update(t, s, func(tx *Tx) { require.NoError(t, tx.ClearTrash(6)) })
		require.EqualValues(t, schemaVersion, schema(), "another key space is left")
		update(t, s, func(tx *Tx) { require.NoError(t, tx.DropKeySpace("k3s-2")) })
		require.EqualValues(t, schemaVersion, schema(), "the trash has a key of a key space")
		update(t, s, func(tx *Tx) { require.NoError(t, tx.ClearTrash(7)) })
		require.EqualValues(t, schemaRecords, schema(), "older thinsnaps can use it")
		update(t, s, func(tx *Tx) { require.NoError(t, tx.ClearTrash(8)) })
		require.Equal(t, before, contents(t, s))
		problems, err := s.Check(t.Context())
		require.NoError(t, err)
		require.Empty(t, problems)
	}
}

func TestRebuildKeySpaces(t *testing.T) {
	s := newStore(t, Options{})
	update(t, s, func(tx *Tx) {
		_, err := tx.Lease(10)
		require.NoError(t, err)
		require.NoError(t, tx.SetClient("k3s", ClientRecord{Number: 2}))
		require.NoError(t, tx.Create(active("\xffk3s/a", "", 2)))
		require.NoError(t, tx.setCountersOf("k3s", counters{views: 4}))
	})
	view(t, s, func(tx *Tx) {
		_, err := tx.CountByKindIn("")
		require.ErrorIs(t, err, errdefs.ErrDataLoss)
	})
	problems, err := s.Check(t.Context())
	require.NoError(t, err)
	require.Len(t, problems, 1)
	require.Equal(t, "counters of client k3s", problems[0].Subject)
	require.NoError(t, s.Rebuild(t.Context()))
	problems, err = s.Check(t.Context())
	require.NoError(t, err)
	require.Empty(t, problems)
}

func TestKeysAsTheyAreShown(t *testing.T) {
	for stored, shown := range map[string]string{
		"default/1/a": "default/1/a", "@k3s/a": "@/@k3s/a", "\xffk3s/default/1/a": "@k3s/default/1/a", "@": "@/@",
		"\xffk3s/@a": "@k3s/@a",
	} {
		require.Equal(t, shown, ShowKey(stored))
		back, err := ReadKey(shown)
		require.NoError(t, err)
		require.Equal(t, stored, back)
	}
	_, err := ReadKey("@K3S/a")
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	text := fmt.Sprintf("snapshot %q of %q, not %q", "\xffk3s/a/1/b", "\xffmoby/c", "\xffk3s/d")
	require.Equal(t, `snapshot "@k3s/a/1/b" of "@moby/c", not "@k3s/d"`, ShowText(text))
	require.Equal(t, `snapshot "a/1/b" of "@moby/c", not "d"`, OwnText("k3s", text))
}

func TestJoinKey(t *testing.T) {
	for _, bad := range [][2]string{
		{"", ""}, {"k3s", ""}, {"", "\xffa"}, {"k3s", "\xffa"}, {"a/b", "c"}, {"-a", "b"}, {"a-", "b"}, {"A", "b"},
		{strings.Repeat("a", MaxKeySpace+1), "b"}, {"", strings.Repeat("a", MaxKeyLength+1)},
		{"k3s", strings.Repeat("a", MaxKeyLength-4)},
	} {
		_, err := JoinKey(bad[0], bad[1])
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument, "%.40q", bad)
	}
	longest, err := JoinKey(strings.Repeat("a", MaxKeySpace), strings.Repeat("b", MaxKeyLength-MaxKeySpace-2))
	require.NoError(t, err)
	s := newStore(t, Options{})
	update(t, s, func(tx *Tx) {
		_, err := tx.Lease(10)
		require.NoError(t, err)
		require.NoError(t, tx.SetBase(ext4Base(1)))
		require.NoError(t, tx.SetClient(strings.Repeat("a", MaxKeySpace), ClientRecord{Number: math.MaxUint64}))
		require.NoError(t, tx.Create(viewOf(longest, "", 1)))
	})
}

// No key that a client can send is in another client's key space.
func FuzzKeySpaces(f *testing.F) {
	f.Add("k3s", "a", "k3s-2", "b")
	f.Add("", "\xffk3s/a", "k3s", "a")
	f.Fuzz(func(t *testing.T, space, key, other, otherKey string) {
		one, err := JoinKey(space, key)
		if err != nil {
			return
		}
		require.NoError(t, CheckKey(one))
		gotSpace, gotKey := SplitKey(one)
		require.Equal(t, []string{space, key}, []string{gotSpace, gotKey})
		back, err := ReadKey(ShowKey(one))
		require.NoError(t, err)
		require.Equal(t, one, back)
		begin, below := keyRange(space)
		require.True(t, begin < one && one < below)
		if two, err := JoinKey(other, otherKey); err == nil {
			require.Equal(t, space == other && key == otherKey, one == two)
			require.Equal(t, space == other, begin < two && two < below)
		}
	})
}
