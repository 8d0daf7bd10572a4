package model_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/powercut/model"
)

func TestDoubt(t *testing.T) {
	before := []model.Event{
		{Op: model.Prepare, Key: "a"}, {Op: model.Write, Key: "a", Digest: "1"},
		{Op: model.Pull, Key: "image", Name: "top", Digest: "2"},
	}
	tests := map[string]struct {
		doubt        model.Event
		done, undone func(*model.Model)
	}{
		"commit": {
			doubt: model.Event{Op: model.Commit, Key: "a", Name: "c", Digest: "1"},
			done: func(m *model.Model) {
				delete(m.Snapshots, "a")
				m.Snapshots["c"] = model.Snapshot{Kind: "Committed", Digest: "1"}
			},
		},
		"write": {
			doubt:  model.Event{Op: model.Write, Key: "a", Digest: "3"},
			done:   func(m *model.Model) { m.Snapshots["a"] = model.Snapshot{Kind: "Active"} },
			undone: func(m *model.Model) { m.Snapshots["a"] = model.Snapshot{Kind: "Active"} },
		},
		"remove image": {
			doubt: model.Event{Op: model.RemoveImage, Key: "image"},
			done:  func(m *model.Model) { delete(m.Images, "image") },
		},
		"run": {
			doubt: model.Event{Op: model.Run, Key: "b", Parent: "image", Digest: "4"},
			done:  func(m *model.Model) { m.Containers["b"] = model.Container{Image: "image", Digest: "4"} },
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			for _, done := range []bool{true, false} {
				got, want := model.New(), model.New()
				for _, e := range before {
					got.Apply(e)
					want.Apply(e)
				}
				tt.doubt.Begin = true
				got.Apply(tt.doubt)
				require.Equal(t, want.Snapshots, got.Snapshots)
				require.Equal(t, &tt.doubt, got.Doubt)
				got.Apply(model.Event{Op: model.Settled, Done: done})
				if done {
					tt.done(want)
				} else if tt.undone != nil {
					tt.undone(want)
				}
				require.Equal(t, want, got)
			}
		})
	}
}

func TestFollowTruncatedLine(t *testing.T) {
	var keys []string
	err := model.Follow(strings.NewReader(`{"op":"view","key":"a"}`+"\n"+`{"op":"view","ke`), func(e model.Event) { keys = append(keys, e.Key) })
	require.NoError(t, err)
	require.Equal(t, []string{"a"}, keys)
}
