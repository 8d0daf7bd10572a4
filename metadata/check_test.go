package metadata

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

// TestCheckFinds damages a good store in one way at a time.
func TestCheckFinds(t *testing.T) {
	change := func(key string, fn func(*Snapshot)) func(*Tx) error {
		return func(tx *Tx) error {
			s, err := tx.Get(key)
			if err != nil {
				return err
			}
			fn(&s)
			return tx.put(tx.buckets.snapshots, []byte(key), encodeSnapshot(s))
		}
	}
	put := func(b func(*buckets) *bolt.Bucket, k, v []byte) func(*Tx) error {
		return func(tx *Tx) error { return tx.put(b(tx.buckets), k, v) }
	}
	del := func(b func(*buckets) *bolt.Bucket, k []byte) func(*Tx) error {
		return func(tx *Tx) error { return tx.delete(b(tx.buckets), k) }
	}
	var (
		meta     = func(b *buckets) *bolt.Bucket { return b.meta }
		snaps    = func(b *buckets) *bolt.Bucket { return b.snapshots }
		index    = func(b *buckets) *bolt.Bucket { return b.children }
		devices  = func(b *buckets) *bolt.Bucket { return b.devices }
		leases   = func(b *buckets) *bolt.Bucket { return b.leases }
		trash    = func(b *buckets) *bolt.Bucket { return b.trash }
		bases    = func(b *buckets) *bolt.Bucket { return b.bases }
		rubbish  = []byte{99, 1, 2}
		workKey  = append(childPrefix(3, childVolume), encodeDevice(4)...)
		lookKey  = append(childPrefix(3, childView), "look"...)
		otherKey = append(childPrefix(3, childView), "other"...)
	)
	for name, tc := range map[string]struct {
		do   func(*Tx) error
		want string // part of one of the problems
	}{
		"snapshot unreadable":    {put(snaps, []byte("work"), rubbish), `snapshot "work": metadata store is damaged`},
		"parent gone":            {del(snaps, []byte("low")), `snapshot "high": its parent "low" does not exist`},
		"parent active":          {change("high", func(s *Snapshot) { s.Kind = snapshots.KindActive }), `its parent "high" is not committed`},
		"own ancestor":           {change("low", func(s *Snapshot) { s.Parent = "high" }), "is its own ancestor"},
		"own parent":             {change("low", func(s *Snapshot) { s.Parent = "low" }), "is its own ancestor"},
		"id twice":               {change("work", func(s *Snapshot) { s.VolumeID = 5 }), `device 5: is owned by snapshot`},
		"id of a base":           {change("work", func(s *Snapshot) { s.VolumeID = 1 }), "device 1: is owned by"},
		"id unknown to index":    {del(devices, encodeDevice(4)), `device 4: is owned by snapshot "work", but not in the index`},
		"id of another in index": {put(devices, encodeDevice(4), encodeOwner(Owner{OwnerSnapshot, "x"})), `but the index says snapshot "x"`},
		"owner unreadable":       {put(devices, encodeDevice(4), rubbish), "but the index says an unreadable entry"},
		"unowned in index":       {put(devices, encodeDevice(9), encodeOwner(Owner{OwnerSnapshot, "x"})), "device 9: has no owner"},
		"odd key in index":       {put(devices, []byte{1}, rubbish), "index of devices"},
		"id never leased":        {put(meta, keyNext, encodeDevice(4)), "only ids from 1 to 3 were leased"},
		"id before the first":    {put(meta, keyFirst, encodeDevice(2)), "device 1: is owned by base volume"},
		"next id lost":           {del(meta, keyNext), "the next device id cannot be read"},
		"all ids lost": {func(tx *Tx) error {
			if err := del(meta, keyNext)(tx); err != nil {
				return err
			}
			return del(meta, keyFirst)(tx)
		}, "no device id was ever leased"},
		"lease beyond":       {put(leases, encodeDevice(1), encodeDevice(65)), "has devices 1 to 65"},
		"lease backwards":    {put(leases, encodeDevice(9), encodeDevice(8)), "has devices 9 to 8"},
		"leases overlap":     {put(leases, encodeDevice(9), encodeDevice(10)), "has devices 9 to 10"},
		"lease unreadable":   {put(leases, encodeDevice(10), rubbish), "lease 10: metadata store is damaged: device id 0x"},
		"odd key of a lease": {put(leases, []byte{10}, rubbish), "lease 0x0a: "},
		"trash in use":       {put(trash, encodeDevice(4), encodeTrash(TrashRecord{})), "and by the trash"},
		"trash unreadable":   {put(trash, encodeDevice(10), rubbish), "trash 10: "},
		"kept unreadable":    {put(meta, keptKey(10), rubbish), "leftover 10: "},
		"base unreadable":    {put(bases, baseKey("ext4", 10<<30), rubbish), "base volume"},
		"child not indexed":  {del(index, workKey), "index of children: lacks"},
		"view not indexed":   {del(index, lookKey), "index of children: lacks"},
		"child that is none": {put(index, otherKey, nil), "index of children: has"},
		"counters wrong":     {put(meta, keyCounters, newEncoder(0).b), "counters"},
		"counters off by one": {func(tx *Tx) error {
			c, err := tx.counters()
			if err != nil {
				return err
			}
			c.views++
			return tx.setCounters(c)
		}, "counters: say views 2, active 2, committed 2, trash 0, but there are views 1"},
		"view of other id":    {change("look", func(s *Snapshot) { s.VolumeID = 2 }), "shows device 2"},
		"view of other size":  {change("look", func(s *Snapshot) { s.Size = 1 }), "of 1 bytes"},
		"view of no base":     {change("look", func(s *Snapshot) { s.Parent = "" }), "which is not the base volume"},
		"smaller than parent": {change("work", func(s *Snapshot) { s.Size = 1 }), "has 1 bytes, its parent"},
		"other file system":   {change("work", func(s *Snapshot) { s.Filesystem = "xfs" }), `has file system "xfs"`},
		"usage of an active":  {change("work", func(s *Snapshot) { s.Usage.Inodes = 1 }), "has a usage"},
		"pool unreadable":     {put(meta, keyPool, rubbish), "pool: "},
	} {
		t.Run(name, func(t *testing.T) {
			s := furnished(t)
			problems, err := s.Check(t.Context())
			require.NoError(t, err)
			require.Empty(t, problems)
			require.NoError(t, s.Update(t.Context(), tc.do))
			problems, err = s.Check(t.Context())
			require.NoError(t, err)
			var all []string
			for _, p := range problems {
				all = append(all, p.String())
			}
			require.Contains(t, strings.Join(all, "\n"), tc.want)
			requireRebuilt(t, s, problems)
			require.NoError(t, s.Close()) // before newStore's cleanup, which checks the store
		})
	}
}

// requireRebuilt rebuilds the indexes, and requires that no derived problem is left.
func requireRebuilt(t *testing.T, s *Store, before []Problem) {
	t.Helper()
	err := s.Rebuild(t.Context())
	after, checkErr := s.Check(t.Context())
	require.NoError(t, checkErr)
	if errors.Is(err, errdefs.ErrFailedPrecondition) {
		require.ElementsMatch(t, before, after, "nothing has been changed")
		return
	}
	require.NoError(t, err)
	for _, p := range before {
		if !p.Derived {
			require.Contains(t, after, p)
		}
	}
	for _, p := range after {
		require.False(t, p.Derived, p.String())
	}
}

func TestCheckFindsDamagedPages(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metadata.db")
	s, err := Open(path, Options{})
	require.NoError(t, err)
	fill(t, s, 2000)
	require.NoError(t, s.Close())

	// One page of a tree gets an invalid type.
	db, err := bolt.Open(path, 0o600, nil)
	require.NoError(t, err)
	leaf := int64(0)
	require.NoError(t, db.View(func(tx *bolt.Tx) error {
		for id := 2; leaf == 0; id++ {
			p, err := tx.Page(id)
			if err != nil || p == nil {
				return err
			}
			if p.Type == "leaf" && p.Count > 10 {
				leaf = int64(id)
			}
		}
		return nil
	}))
	require.NoError(t, db.Close())
	require.NotZero(t, leaf)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte{0x40, 0}, leaf*4096+8)
	require.NoError(t, err)
	require.NoError(t, f.Close())

	s, err = Open(path, Options{ReadOnly: true})
	require.NoError(t, err)
	problems, err := s.Check(t.Context())
	require.NoError(t, err)
	require.NotEmpty(t, problems)
	require.Equal(t, "file", problems[0].Subject)
	require.NoError(t, s.Close())
}

func TestCheckCancelled(t *testing.T) {
	s := furnished(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.Check(ctx)
	require.ErrorIs(t, err, context.Canceled)
	update(t, s, func(tx *Tx) { require.NoError(t, tx.Create(active("x", "high", 9))) }) // the writer still works
}

// An Update and another check that wait for a check can be cancelled.
func TestWaitingForACheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := furnished(t)
		s.exclusive.Lock()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, s.Update(ctx, func(*Tx) error { panic("ran") }), context.DeadlineExceeded)
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := s.Check(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		s.exclusive.Unlock()
		update(t, s, func(tx *Tx) { require.NoError(t, tx.Create(active("x", "high", 9))) })
	})
}

func TestCheckBesideUpdates(t *testing.T) {
	s := furnished(t)
	done := make(chan error, 1)
	go func() {
		for i := range 100 {
			if err := s.Update(context.Background(), func(tx *Tx) error {
				key := fmt.Sprint("key-", i)
				if err := tx.Create(active(key, "high", 9)); err != nil {
					return err
				}
				if _, err := tx.Remove(key, noon); err != nil {
					return err
				}
				return tx.ClearTrash(9)
			}); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for {
		problems, err := s.Check(t.Context())
		require.NoError(t, err)
		require.Empty(t, problems)
		select {
		case err := <-done:
			require.NoError(t, err)
			return
		default:
		}
	}
}
