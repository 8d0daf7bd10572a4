package metadata

import (
	"errors"
	"fmt"
	"sort"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

func children(t *testing.T, tx *Tx, key string) []string {
	t.Helper()
	var all []string
	require.NoError(t, tx.Children(key, func(child string) error {
		all = append(all, child)
		return nil
	}))
	return all
}

func TestForEach(t *testing.T) {
	s := furnished(t)
	view(t, s, func(tx *Tx) {
		var keys []string
		require.NoError(t, tx.ForEach(func(s Snapshot) error {
			got, err := tx.Get(s.Key)
			require.NoError(t, err)
			require.Equal(t, got, s)
			keys = append(keys, s.Key)
			return nil
		}))
		require.Equal(t, []string{"alone", "high", "look", "low", "work"}, keys)
		enough := errors.New("enough")
		n := 0
		require.Equal(t, enough, tx.ForEach(func(Snapshot) error { n++; return enough }))
		require.Equal(t, 1, n)
	})
}

func TestChildrenAndParents(t *testing.T) {
	s := furnished(t)
	view(t, s, func(tx *Tx) {
		require.Equal(t, []string{"high"}, children(t, tx, "low"))
		require.Equal(t, []string{"work", "look"}, children(t, tx, "high"))
		require.Empty(t, children(t, tx, "work"))
		require.Empty(t, children(t, tx, "look"), "a View has its parent's device id, but not its children")
		require.ErrorIs(t, tx.Children("none", nil), errdefs.ErrNotFound)
		enough := errors.New("enough")
		require.Equal(t, enough, tx.Children("low", func(string) error { return enough }))

		low, err := tx.Get("low")
		require.NoError(t, err)
		high, err := tx.Get("high")
		require.NoError(t, err)
		for key, want := range map[string][]Snapshot{"work": {high, low}, "look": {high, low}, "high": {low}, "low": nil, "alone": nil} {
			got, err := tx.Parents(key)
			require.NoError(t, err)
			require.Equal(t, want, got, key)
		}
		_, err = tx.Parents("none")
		require.ErrorIs(t, err, errdefs.ErrNotFound)
	})
}

func TestChildrenOfADamagedIndex(t *testing.T) {
	for name, child := range map[string][]byte{
		"no id": {1, 2}, "unowned id": encodeDevice(9), "id of a base volume": encodeDevice(1),
	} {
		t.Run(name, func(t *testing.T) {
			s := furnished(t)
			update(t, s, func(tx *Tx) {
				k := append(childPrefix(3, childVolume), child...)
				require.NoError(t, tx.put(tx.buckets.children, k, nil))
				require.ErrorIs(t, tx.Children("high", func(string) error { return nil }), errdefs.ErrDataLoss)
				require.NoError(t, tx.delete(tx.buckets.children, k))
			})
		})
	}
}

// TestChildrenOfOddKeys has keys that a simpler index would mix up.
func TestChildrenOfOddKeys(t *testing.T) {
	s := newStore(t, Options{})
	parents := []string{"a", "a\x00", "a\x00b", "a/b", "\x00", "\xf4\x8f\xbf\xbf", "av", "ac", strings.Repeat("l", MaxKeyLength)}
	update(t, s, func(tx *Tx) {
		l, err := tx.Lease(1000)
		require.NoError(t, err)
		id := l.First
		for i, p := range parents {
			require.NoError(t, tx.Create(active("tmp", "", id)))
			_, err := tx.Commit(p, "tmp", CommitChange{Now: noon})
			require.NoError(t, err)
			for j := range i {
				require.NoError(t, tx.Create(viewOf(fmt.Sprintf("%d\x00view%d", i, j), p, id)))
				require.NoError(t, tx.Create(active(fmt.Sprintf("%d\x00active%d", i, j), p, id+1+uint32(j))))
			}
			id += 20
		}
		for i, p := range parents {
			got := children(t, tx, p)
			require.Len(t, got, 2*i)
			for _, k := range got {
				require.True(t, strings.HasPrefix(k, fmt.Sprintf("%d\x00", i)))
			}
			sn, err := tx.Get(p)
			require.NoError(t, err)
			n, err := tx.Views(sn.VolumeID)
			require.NoError(t, err)
			require.Equal(t, i, n)
		}
	})
}

func TestViews(t *testing.T) {
	s := furnished(t)
	count := func(device uint32) (n int) {
		t.Helper()
		view(t, s, func(tx *Tx) {
			var err error
			n, err = tx.Views(device)
			require.NoError(t, err)
		})
		return n
	}
	require.Equal(t, []int{0, 0, 1, 0}, []int{count(1), count(2), count(3), count(4)})
	update(t, s, func(tx *Tx) {
		require.NoError(t, tx.Create(viewOf("b1", "", 1)))
		require.NoError(t, tx.Create(viewOf("b2", "", 1)))
		require.NoError(t, tx.Create(viewOf("look2", "high", 3)))
	})
	require.Equal(t, []int{2, 2}, []int{count(1), count(3)})
	view(t, s, func(tx *Tx) {
		for device, first := range map[uint32]string{1: "b1", 2: "", 3: "look", 4: ""} {
			key, found := tx.ViewOf(device)
			require.Equal(t, first, key)
			require.Equal(t, first != "", found)
		}
	})
	update(t, s, func(tx *Tx) {
		for _, k := range []string{"b1", "look"} {
			_, err := tx.Remove(k, noon)
			require.NoError(t, err)
		}
	})
	require.Equal(t, []int{1, 1}, []int{count(1), count(3)})
}

func TestForEachOrder(t *testing.T) {
	s := newStore(t, Options{})
	fill(t, s, 300)
	view(t, s, func(tx *Tx) {
		var keys []string
		require.NoError(t, tx.ForEach(func(s Snapshot) error {
			keys = append(keys, s.Key)
			return nil
		}))
		require.Len(t, keys, 300)
		require.True(t, sort.StringsAreSorted(keys))
		counts, err := tx.CountByKind()
		require.NoError(t, err)
		require.Equal(t, KindCounts{Active: 50, Committed: 250}, counts)
	})
}

func TestAfter(t *testing.T) {
	page := func(s *Store, key string, n int) (keys []string, more bool) {
		t.Helper()
		view(t, s, func(tx *Tx) {
			all, rest, err := tx.After(key, Page{Records: n, Bytes: 1 << 20})
			require.NoError(t, err)
			more = rest
			for _, s := range all {
				keys = append(keys, s.Key)
			}
		})
		return keys, more
	}
	s := furnished(t)
	for _, tc := range []struct {
		after string
		n     int
		want  []string
		more  bool
	}{
		{"", 10, []string{"alone", "high", "look", "low", "work"}, false},
		{"", 5, []string{"alone", "high", "look", "low", "work"}, false},
		{"", 2, []string{"alone", "high"}, true},
		{"high", 2, []string{"look", "low"}, true},
		{"hig", 2, []string{"high", "look"}, true},
		{"high\x00", 1, []string{"look"}, true},
		{"low", 2, []string{"work"}, false},
		{"work", 2, nil, false},
		{"zzz", 2, nil, false},
		{"", 0, nil, true},
	} {
		keys, more := page(s, tc.after, tc.n)
		require.Equal(t, tc.want, keys, "%d after %q", tc.n, tc.after)
		require.Equal(t, tc.more, more, "%d after %q", tc.n, tc.after)
	}
	keys, more := page(newStore(t, Options{}), "", 10)
	require.Empty(t, keys)
	require.False(t, more)
}

// A page ends when it is large, and has at least one record.
func TestAfterBoundsPages(t *testing.T) {
	s := newStore(t, Options{})
	fill(t, s, 10)
	view(t, s, func(tx *Tx) {
		all, rest, err := tx.After("", Page{Records: 100, Bytes: 1 << 20})
		require.NoError(t, err)
		require.Len(t, all, 10)
		require.False(t, rest)
		one, more, err := tx.After("", Page{Records: 100, Bytes: 1})
		require.NoError(t, err)
		require.Equal(t, all[:1], one)
		require.True(t, more)
		bare, _, err := tx.After("", Page{Records: 100, Bytes: 1 << 20, NoLabels: true})
		require.NoError(t, err)
		for i := range all {
			require.NotEmpty(t, all[i].Labels)
			all[i].Labels = nil
		}
		require.Equal(t, all, bare)
	})
}
