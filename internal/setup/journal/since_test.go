package journal

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

const imported = "version = 2\nimports = [\"/etc/conf.d/*.toml\"]\n"

func (s stand) change(t *testing.T, path, after string) {
	t.Helper()
	f := File{Path: path, Before: s.read(t, path), After: []byte(after)}
	require.NoError(t, s.open(t).Apply([]File{f}, succeeds))
}

// TestReplaced: if another program has rewritten a file, there is no change to undo. If the file
// was changed again after that, undo reverts only the new change.
func TestReplaced(t *testing.T) {
	s := newStand(t)
	s.change(t, s.main, imported)
	fresh := "version = 3\noom_score = -5\n"
	require.NoError(t, os.WriteFile(s.main, []byte(fresh), 0o640))
	require.NoError(t, s.open(t).TakeBack())
	require.Equal(t, fresh, string(s.read(t, s.main)))
	require.True(t, s.open(t).Empty())

	s = newStand(t)
	s.change(t, s.main, imported)
	require.NoError(t, os.WriteFile(s.main, []byte(fresh), 0o640))
	s.change(t, s.main, fresh+"imports = [\"/etc/conf.d/*.toml\"]\n")
	require.Equal(t, fresh, string(s.read(t, s.open(t).Backups()[0])))
	require.NoError(t, os.WriteFile(s.main, []byte("# mine\n"+fresh+"imports = [\"/etc/conf.d/*.toml\"]\n"), 0o640))
	require.NoError(t, s.open(t).TakeBack())
	require.Equal(t, "# mine\n"+fresh, string(s.read(t, s.main)))

	s = newStand(t)
	s.change(t, s.main, imported)
	quoted := "version = 2\nimports = ['/etc/conf.d/*.toml']\n"
	require.NoError(t, os.WriteFile(s.main, []byte(quoted), 0o640))
	err := s.open(t).TakeBack()
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition, "the line is in another form")
	require.ErrorContains(t, err, s.record)
}

// TestKilledAndEdited: a recorded change that a crash prevented does not block undo.
func TestKilledAndEdited(t *testing.T) {
	s := newStand(t)
	s.apply(t)
	require.NoError(t, os.WriteFile(s.main, []byte(original), 0o640))
	s.apply(t)
	half := filepath.Join(s.dir, ".main.toml.thinsnap-123")
	require.NoError(t, os.WriteFile(half, []byte("versi"), 0o600))
	require.NoError(t, os.WriteFile(s.main, []byte(imports+"  b = 2\n"), 0o640))
	require.NoError(t, s.open(t).TakeBack())
	require.Equal(t, original+"  b = 2\n", string(s.read(t, s.main)))
	require.NoFileExists(t, half)
}

// TestLinks: a directory may be a link, a file may have moved behind a link, and a link without a
// target stays.
func TestLinks(t *testing.T) {
	s := newStand(t)
	require.NoError(t, os.MkdirAll(filepath.Join(s.dir, "real"), 0o755))
	require.NoError(t, os.Symlink("real", filepath.Join(s.dir, "conf.d")))
	before := tree(t, filepath.Join(s.dir, "real"))
	s.change(t, s.dropIn, "new\n")
	require.True(t, s.open(t).Created(s.dropIn))
	s.change(t, s.dropIn, "newer\n")
	require.Empty(t, s.open(t).Backups())
	require.NoError(t, s.open(t).TakeBack())
	require.Equal(t, before, tree(t, filepath.Join(s.dir, "real")))

	s.change(t, s.main, imports)
	moved := filepath.Join(s.dir, "real", "main.toml")
	require.NoError(t, os.Rename(s.main, moved))
	require.NoError(t, os.Symlink(moved, s.main))
	require.NoError(t, s.open(t).TakeBack())
	target, err := os.Readlink(s.main)
	require.NoError(t, err)
	require.Equal(t, moved, target)
	require.Equal(t, original, string(s.read(t, moved)))

	require.NoError(t, os.Remove(moved))
	err = s.open(t).Apply([]File{{Path: s.main, After: []byte("x")}}, succeeds)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	_, err = os.Readlink(s.main)
	require.NoError(t, err)
}

// TestRelative: the record is valid in every working directory.
func TestRelative(t *testing.T) {
	s := newStand(t)
	t.Chdir(s.dir)
	s.change(t, "main.toml", imports)
	t.Chdir("/")
	require.NoError(t, s.open(t).TakeBack())
	require.Equal(t, s.before, tree(t, s.dir))
}

// TestMode: an existing file loses the permissions that the mode lacks.
func TestMode(t *testing.T) {
	s := newStand(t)
	for _, step := range []struct{ may, has fs.FileMode }{{0o644, 0o644}, {0o600, 0o600}, {0o640, 0o600}} {
		f := File{Path: s.dropIn, Before: s.read(t, s.dropIn), After: []byte(step.may.String()), Mode: step.may}
		require.NoError(t, s.open(t).Apply([]File{f}, succeeds))
		info, err := os.Stat(s.dropIn)
		require.NoError(t, err)
		require.Equal(t, step.has, info.Mode())
	}
}

// TestJSON: undo keeps an edited file if its result would be invalid JSON.
func TestJSON(t *testing.T) {
	s := newStand(t)
	for before, edited := range map[string]string{"{\n}\n": "{\n  \"b\": 1,\n  \"a\": 1\n}\n", "": ""} {
		require.NoError(t, os.WriteFile(s.main, []byte(before), 0o640))
		s.change(t, s.main, "{\n  \"a\": 1\n}\n")
		if edited == "" {
			require.NoError(t, s.open(t).TakeBack())
			require.Equal(t, before, string(s.read(t, s.main)))
			continue
		}
		require.NoError(t, os.WriteFile(s.main, []byte(edited), 0o640))
		require.ErrorIs(t, s.open(t).TakeBack(), errdefs.ErrFailedPrecondition)
		require.Equal(t, edited, string(s.read(t, s.main)))
		require.NoError(t, os.Remove(s.record))
	}
}
