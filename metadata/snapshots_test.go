package metadata

import (
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

func TestCreate(t *testing.T) {
	with := func(s Snapshot, change func(*Snapshot)) Snapshot {
		change(&s)
		return s
	}
	for name, tc := range map[string]struct {
		snapshot Snapshot
		want     error // nil if it is created
		text     string
	}{
		"active":                 {snapshot: active("new", "high", 7)},
		"active, no parent":      {snapshot: active("new", "", 7)},
		"active, larger":         {snapshot: with(active("new", "high", 7), func(s *Snapshot) { s.Size *= 2 })},
		"active, last of lease":  {snapshot: active("new", "high", 64)},
		"active, no parent, xfs": {snapshot: with(active("new", "", 7), func(s *Snapshot) { s.Filesystem, s.Size = "xfs", 1 })},
		"view":                   {snapshot: viewOf("new", "high", 3)},
		"view of the base":       {snapshot: viewOf("new", "", 1)},
		"labels":                 {snapshot: with(active("new", "", 7), func(s *Snapshot) { s.Labels = map[string]string{"a": "b", "": "\x00"} })},
		"odd key":                {snapshot: active("a/b\x00c \xff\n\"", "high", 7)},
		"longest key":            {snapshot: active(strings.Repeat("k", MaxKeyLength), "high", 7)},
		"longest key, view":      {snapshot: viewOf(strings.Repeat("k", MaxKeyLength), "high", 3)},

		"empty key":            {snapshot: active("", "high", 7), want: errdefs.ErrInvalidArgument},
		"key too long":         {snapshot: active(strings.Repeat("k", MaxKeyLength+1), "", 7), want: errdefs.ErrInvalidArgument},
		"committed":            {snapshot: with(active("new", "high", 7), func(s *Snapshot) { s.Kind = snapshots.KindCommitted }), want: errdefs.ErrInvalidArgument},
		"no kind":              {snapshot: with(active("new", "high", 7), func(s *Snapshot) { s.Kind = 0 }), want: errdefs.ErrInvalidArgument},
		"usage":                {snapshot: with(active("new", "high", 7), func(s *Snapshot) { s.Usage.Bytes = 1 }), want: errdefs.ErrInvalidArgument},
		"exists":               {snapshot: active("work", "high", 7), want: errdefs.ErrAlreadyExists, text: `"work"`},
		"exists as view":       {snapshot: active("look", "high", 7), want: errdefs.ErrAlreadyExists},
		"exists as committed":  {snapshot: viewOf("high", "low", 2), want: errdefs.ErrAlreadyExists},
		"no such parent":       {snapshot: active("new", "none", 7), want: errdefs.ErrNotFound, text: `"none"`},
		"own parent":           {snapshot: active("new", "new", 7), want: errdefs.ErrNotFound},
		"parent active":        {snapshot: active("new", "work", 7), want: errdefs.ErrInvalidArgument, text: "not a committed"},
		"parent view":          {snapshot: viewOf("new", "look", 3), want: errdefs.ErrInvalidArgument},
		"device 0":             {snapshot: active("new", "high", 0), want: errdefs.ErrFailedPrecondition, text: "no open lease"},
		"device not leased":    {snapshot: active("new", "high", 65), want: errdefs.ErrFailedPrecondition, text: "device 65 is in no open lease"},
		"device of a snapshot": {snapshot: active("new", "high", 4), want: errdefs.ErrFailedPrecondition, text: `device 4 is owned by snapshot "work"`},
		"device of a base":     {snapshot: active("new", "high", 1), want: errdefs.ErrFailedPrecondition, text: "owned by base volume ext4/"},
		"smaller than parent":  {snapshot: with(active("new", "high", 7), func(s *Snapshot) { s.Size-- }), want: errdefs.ErrInvalidArgument},
		"file system changed":  {snapshot: with(active("new", "high", 7), func(s *Snapshot) { s.Filesystem = "xfs" }), want: errdefs.ErrFailedPrecondition},
		"view of other device": {snapshot: viewOf("new", "high", 2), want: errdefs.ErrFailedPrecondition},
		"view of other size":   {snapshot: with(viewOf("new", "high", 3), func(s *Snapshot) { s.Size++ }), want: errdefs.ErrFailedPrecondition},
		"view of no base":      {snapshot: with(viewOf("new", "", 1), func(s *Snapshot) { s.Filesystem = "xfs" }), want: errdefs.ErrFailedPrecondition},
		"view, not the base's": {snapshot: viewOf("new", "", 4), want: errdefs.ErrFailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			s := furnished(t)
			before := s.Stats().Transactions
			err := s.Update(t.Context(), func(tx *Tx) error { return tx.Create(tc.snapshot) })
			if tc.want != nil {
				require.ErrorIs(t, err, tc.want)
				require.ErrorContains(t, err, tc.text)
				require.Equal(t, before, s.Stats().Transactions, "it failed before it wrote")
				return
			}
			require.NoError(t, err)
			view(t, s, func(tx *Tx) {
				got, err := tx.Get(tc.snapshot.Key)
				require.NoError(t, err)
				require.Equal(t, tc.snapshot, got)
				if o, ok := tx.Owner(tc.snapshot.VolumeID); tc.snapshot.Kind == snapshots.KindActive {
					require.True(t, ok)
					require.Equal(t, Owner{OwnerSnapshot, tc.snapshot.Key}, o)
				}
			})
		})
	}
}

func TestGet(t *testing.T) {
	s := furnished(t)
	view(t, s, func(tx *Tx) {
		got, err := tx.Get("low")
		require.NoError(t, err)
		want := active("low", "", 2)
		want.Kind, want.Usage = snapshots.KindCommitted, Usage{Bytes: 4096, Inodes: 3}
		require.Equal(t, want, got)
		require.True(t, tx.Exists("low"))
		for _, key := range []string{"", "none", "lo", "low-key", strings.Repeat("x", 1<<17)} {
			_, err := tx.Get(key)
			require.ErrorIs(t, err, errdefs.ErrNotFound)
			require.False(t, tx.Exists(key))
		}
	})
}

func TestSetLabels(t *testing.T) {
	later := noon.Add(time.Hour).In(time.FixedZone("elsewhere", 3600))
	for _, key := range []string{"low", "work", "look"} {
		s := furnished(t)
		labels := map[string]string{"a": strings.Repeat("b", 4096), "c": ""}
		var was, is Snapshot
		update(t, s, func(tx *Tx) {
			var err error
			was, err = tx.Get(key)
			require.NoError(t, err)
			is, err = tx.SetLabels(key, labels, later)
			require.NoError(t, err)
		})
		want := was
		want.Labels, want.Updated = map[string]string{"a": strings.Repeat("b", 4096), "c": ""}, noon.Add(time.Hour)
		require.Equal(t, want, is)
		labels["a"] = "the caller's map is not the store's"
		view(t, s, func(tx *Tx) {
			got, err := tx.Get(key)
			require.NoError(t, err)
			require.Equal(t, want, got)
			require.Equal(t, want, is)
		})
		update(t, s, func(tx *Tx) {
			got, err := tx.SetLabels(key, map[string]string{}, later)
			require.NoError(t, err)
			require.Nil(t, got.Labels)
		})
	}
	err := furnished(t).Update(t.Context(), func(tx *Tx) error {
		_, err := tx.SetLabels("none", nil, later)
		return err
	})
	require.ErrorIs(t, err, errdefs.ErrNotFound)
}

func TestRemove(t *testing.T) {
	later := noon.Add(time.Minute)
	for name, tc := range map[string]struct {
		key  string
		want error
		text string
	}{
		"active":                     {key: "work"},
		"view":                       {key: "look"},
		"parentless":                 {key: "alone"},
		"missing":                    {key: "none", want: errdefs.ErrNotFound},
		"empty":                      {key: "", want: errdefs.ErrNotFound},
		"with children":              {key: "low", want: errdefs.ErrFailedPrecondition, text: "cannot remove snapshot with child"},
		"with active child and view": {key: "high", want: errdefs.ErrFailedPrecondition, text: "cannot remove snapshot with child"},
	} {
		t.Run(name, func(t *testing.T) {
			s := furnished(t)
			var was, removed Snapshot
			err := s.Update(t.Context(), func(tx *Tx) (err error) {
				was, _ = tx.Get(tc.key)
				removed, err = tx.Remove(tc.key, later)
				return err
			})
			view(t, s, func(tx *Tx) {
				trash, terr := tx.Trash()
				require.NoError(t, terr)
				count, terr := tx.TrashCount()
				require.NoError(t, terr)
				require.Equal(t, len(trash), count)
				if tc.want != nil {
					require.ErrorIs(t, err, tc.want)
					require.ErrorContains(t, err, tc.text)
					require.Empty(t, trash)
					return
				}
				require.NoError(t, err)
				require.Equal(t, was, removed)
				require.False(t, tx.Exists(tc.key))
				owner, owned := tx.Owner(was.VolumeID)
				require.True(t, owned)
				if was.Kind == snapshots.KindView {
					require.Empty(t, trash)
					require.Equal(t, Owner{OwnerSnapshot, "high"}, owner)
					return
				}
				require.Equal(t, []TrashRecord{{VolumeID: was.VolumeID, Size: was.Size, Key: tc.key, Filesystem: "ext4", Since: later}}, trash)
				require.Equal(t, Owner{Kind: OwnerTrash}, owner)
			})
		})
	}
}

func TestRemoveFromTheTop(t *testing.T) {
	s := furnished(t)
	update(t, s, func(tx *Tx) {
		for _, key := range []string{"work", "look", "high", "low", "alone"} {
			_, err := tx.Remove(key, noon)
			require.NoError(t, err)
		}
		counts, err := tx.CountByKind()
		require.NoError(t, err)
		require.Zero(t, counts.Total())
		// Its key is free again, its device id is not.
		require.ErrorIs(t, tx.Create(active("work", "", 4)), errdefs.ErrFailedPrecondition)
		require.NoError(t, tx.Create(active("work", "", 8)))
	})
}
