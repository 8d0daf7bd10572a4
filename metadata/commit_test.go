package metadata

import (
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

func TestCommit(t *testing.T) {
	later := noon.Add(time.Hour)
	for name, tc := range map[string]struct {
		name, key string
		change    CommitChange
		want      error
		text      string
	}{
		"plain":          {name: "new", key: "work"},
		"parentless":     {name: "new", key: "alone"},
		"labels":         {name: "new", key: "work", change: CommitChange{Labels: map[string]string{"is": "new"}}},
		"usage":          {name: "new", key: "work", change: CommitChange{Usage: Usage{Bytes: 1 << 40, Inodes: 7, Own: 3, Exact: true}}},
		"size":           {name: "new", key: "work", change: CommitChange{Size: 20 << 30}},
		"size, rootless": {name: "new", key: "alone", change: CommitChange{Size: 1}},
		"device":         {name: "new", key: "work", change: CommitChange{VolumeID: 9}},
		"same device":    {name: "new", key: "work", change: CommitChange{VolumeID: 4}},

		"name exists":       {name: "low", key: "work", want: errdefs.ErrAlreadyExists, text: `"low"`},
		"name is key":       {name: "work", key: "work", want: errdefs.ErrAlreadyExists},
		"both wrong":        {name: "low", key: "none", want: errdefs.ErrAlreadyExists},
		"no key":            {name: "new", key: "none", want: errdefs.ErrNotFound, text: `"none"`},
		"committed":         {name: "new", key: "high", want: errdefs.ErrFailedPrecondition, text: "not active"},
		"view":              {name: "new", key: "look", want: errdefs.ErrFailedPrecondition, text: "not active"},
		"empty name":        {name: "", key: "work", want: errdefs.ErrInvalidArgument},
		"too small":         {name: "new", key: "work", change: CommitChange{Size: 1}, want: errdefs.ErrInvalidArgument},
		"device not leased": {name: "new", key: "work", change: CommitChange{VolumeID: 99}, want: errdefs.ErrFailedPrecondition, text: "no open lease"},
		"device owned":      {name: "new", key: "work", change: CommitChange{VolumeID: 5}, want: errdefs.ErrFailedPrecondition, text: `snapshot "alone"`},
	} {
		t.Run(name, func(t *testing.T) {
			s := furnished(t)
			tc.change.Now = later
			update(t, s, func(tx *Tx) {
				_, err := tx.SetLabels("work", map[string]string{"was": "active"}, noon)
				require.NoError(t, err)
			})
			var was, got Snapshot
			err := s.Update(t.Context(), func(tx *Tx) (err error) {
				was, _ = tx.Get(tc.key)
				got, err = tx.Commit(tc.name, tc.key, tc.change)
				return err
			})
			if tc.want != nil {
				require.ErrorIs(t, err, tc.want)
				require.ErrorContains(t, err, tc.text)
				return
			}
			require.NoError(t, err)
			want := was
			want.Key, want.Kind = tc.name, snapshots.KindCommitted
			want.Created, want.Updated = later, later
			want.Labels, want.Usage = tc.change.Labels, tc.change.Usage
			if tc.change.Size != 0 {
				want.Size = tc.change.Size
			}
			if tc.change.VolumeID != 0 {
				want.VolumeID = tc.change.VolumeID
			}
			require.Equal(t, want, got)
			view(t, s, func(tx *Tx) {
				stored, err := tx.Get(tc.name)
				require.NoError(t, err)
				require.Equal(t, want, stored)
				require.False(t, tx.Exists(tc.key))
				owner, _ := tx.Owner(want.VolumeID)
				require.Equal(t, Owner{OwnerSnapshot, tc.name}, owner)
				trash, err := tx.Trash()
				require.NoError(t, err)
				if want.VolumeID == was.VolumeID {
					require.Empty(t, trash)
				} else {
					require.Equal(t, []TrashRecord{{VolumeID: was.VolumeID, Size: was.Size, Key: tc.key, Filesystem: "ext4", Since: later}}, trash)
				}
				counts, err := tx.CountByKind()
				require.NoError(t, err)
				require.Equal(t, KindCounts{Views: 1, Active: 1, Committed: 3}, counts)
			})
		})
	}
}
