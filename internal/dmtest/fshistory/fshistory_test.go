package fshistory_test

import (
	"io/fs"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/dmtest/fshistory"
)

func TestScriptsFollowFromTheSeed(t *testing.T) {
	scripts := func(seed uint64) []string {
		g := fshistory.New(seed, "ext4")
		image := g.Image(50)
		return []string{image.String(), g.Fork(1).Changes(50).String(), g.Changes(50).String()}
	}
	again := scripts(1)
	require.Equal(t, scripts(1), again)
	require.NotEqual(t, scripts(1), scripts(2))
}

// TestScriptsApplyAnywhere applies scripts to a directory on any file system, and a script without
// the paths that the generator expects.
func TestScriptsApplyAnywhere(t *testing.T) {
	for seed := range uint64(20) {
		g := fshistory.New(seed, "xfs")
		image, changes := g.Image(30), g.Changes(60)
		for _, s := range []fshistory.Script{image, slices.Concat(image, changes), changes} {
			dir := t.TempDir()
			run := fshistory.NewRun(filepath.Join(dir, "root"))
			require.Error(t, run.Apply(fshistory.Script{{Do: "nothing"}}))
			run = fshistory.NewRun(dir)
			require.NoError(t, run.Apply(s))
			require.NoError(t, run.Close())
			done, failed := 0, 0
			for _, n := range run.Done {
				done += n
			}
			for _, n := range run.Failed {
				failed += n
			}
			require.Equal(t, len(s), done+failed)
			require.NoError(t, filepath.WalkDir(dir, func(_ string, _ fs.DirEntry, err error) error { return err }))
		}
	}
}

func TestShrink(t *testing.T) {
	s := fshistory.New(1, "ext4").Changes(100)
	needed := []fshistory.Op{s[17], s[60], s[61]}
	tries := 0
	fails := func(s fshistory.Script) bool {
		tries++
		return !slices.ContainsFunc(needed, func(o fshistory.Op) bool { return !slices.Contains(s, o) })
	}
	require.Equal(t, fshistory.Script(needed), fshistory.Shrink(s, 1000, fails))
	tries = 0
	require.Greater(t, len(fshistory.Shrink(s, 5, fails)), len(needed))
	require.Equal(t, 5, tries)
}
