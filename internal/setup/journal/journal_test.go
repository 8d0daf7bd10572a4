package journal

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

// tree returns the content of a directory: its files with their modes, and its directories.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := make(map[string]string)
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			found[path] = "directory"
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		text, err := os.ReadFile(path)
		found[path] = info.Mode().String() + "\n" + string(text)
		return err
	}))
	return found
}

const original = "version = 2\n\n[plugins]\n  a = 1\n"

// stand is a directory with a file, and changes of that file and of a new one.
type stand struct {
	dir, record, main, dropIn string
	before                    map[string]string
}

func newStand(t *testing.T) stand {
	t.Helper()
	dir := t.TempDir()
	s := stand{
		dir: dir, record: filepath.Join(dir, "records", "x.json"), main: filepath.Join(dir, "main.toml"),
		dropIn: filepath.Join(dir, "conf.d", "sub", "new.toml"),
	}
	require.NoError(t, os.WriteFile(s.main, []byte(original), 0o640))
	s.before = tree(t, dir)
	return s
}

func (s stand) open(t *testing.T) *Record {
	t.Helper()
	r, err := Open(s.record)
	require.NoError(t, err)
	return r
}

func (s stand) read(t *testing.T, path string) []byte {
	t.Helper()
	text, err := read(path)
	require.NoError(t, err)
	return text
}

const imports = "version = 2\nimports = []\n\n[plugins]\n  a = 1\n"

func (s stand) files(t *testing.T) []File {
	t.Helper()
	return []File{
		{Path: s.dropIn, Before: s.read(t, s.dropIn), After: []byte("new\n"), Mode: 0o600},
		{Path: s.main, Before: s.read(t, s.main), After: []byte(imports)},
	}
}

func succeeds() error { return nil }

func (s stand) apply(t *testing.T) {
	t.Helper()
	require.NoError(t, s.open(t).Apply(s.files(t), succeeds))
	require.Equal(t, "new\n", string(s.read(t, s.dropIn)))
	require.Equal(t, imports, string(s.read(t, s.main)))
}

func TestUndo(t *testing.T) {
	s := newStand(t)
	require.True(t, s.open(t).Empty())
	s.apply(t)
	r := s.open(t)
	require.True(t, r.Created(s.dropIn))
	require.False(t, r.Created(s.main))
	require.False(t, r.Edited(s.dropIn, []byte("new\n")))
	require.True(t, r.Edited(s.dropIn, []byte("other\n")))
	require.Equal(t, []string{s.main + ".before-thinsnap"}, r.Backups())
	info, err := os.Stat(s.dropIn)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o600), info.Mode())

	once := tree(t, s.dir)
	s.apply(t)
	require.Equal(t, once, tree(t, s.dir), "a second time changes nothing")

	files, left, err := s.open(t).Undo()
	require.NoError(t, err)
	require.Empty(t, left)
	require.Len(t, files, 2)
	require.Equal(t, once, tree(t, s.dir))
	require.NoError(t, s.open(t).TakeBack())
	require.Equal(t, s.before, tree(t, s.dir))
	require.True(t, s.open(t).Empty())
	require.NoError(t, s.open(t).TakeBack())
}

// TestUndoOfAnotherRun: undo also reverts the changes of a run with other options.
func TestUndoOfAnotherRun(t *testing.T) {
	s := newStand(t)
	s.apply(t)
	require.NoError(t, s.open(t).Apply([]File{
		{Path: s.dropIn, Before: []byte("new\n"), After: []byte("newer\n")},
		{Path: s.main, Before: []byte(imports), After: []byte(imports + "b = 2\n")},
	}, succeeds))
	require.NoError(t, s.open(t).TakeBack())
	require.Equal(t, s.before, tree(t, s.dir))
}

func TestCheckFails(t *testing.T) {
	s := newStand(t)
	bad := errors.New("not meant")
	require.ErrorIs(t, s.open(t).Apply(s.files(t), func() error { return bad }), bad)
	require.Equal(t, s.before, tree(t, s.dir))

	s.apply(t)
	once := tree(t, s.dir)
	require.ErrorIs(t, s.open(t).Apply([]File{{Path: s.dropIn, Before: []byte("new\n"), After: []byte("x")}},
		func() error { return bad }), bad)
	require.Equal(t, once, tree(t, s.dir))
}

// TestSecondRunFails: a run that fails removes its own backup and directories, and keeps those of an earlier one.
func TestSecondRunFails(t *testing.T) {
	s := newStand(t)
	require.NoError(t, s.open(t).Apply([]File{
		{Path: s.dropIn, After: []byte("new\n")},
		{Path: s.main, Before: []byte(original), After: []byte(original + "imports = [\"new.toml\"]\n")},
	}, succeeds))
	// Since then, main.toml was replaced and the drop-in's directory removed.
	require.NoError(t, os.WriteFile(s.main, []byte("version = 3\n"), 0o640))
	require.NoError(t, os.RemoveAll(filepath.Dir(s.dropIn)))
	other := filepath.Join(s.dir, "a", "b", "other.toml")
	files := func() []File {
		return []File{
			{Path: s.dropIn, Before: s.read(t, s.dropIn), After: []byte("new\n")},
			{Path: filepath.Join(s.dir, "a", "first.toml"), After: []byte("first\n")},
			{Path: other, After: []byte("other\n")},
			{Path: s.main, Before: []byte("version = 3\n"), After: []byte("version = 3\nimports = []\n")},
		}
	}
	since := tree(t, s.dir)
	require.Error(t, s.open(t).Apply(files(), func() error { return errors.New("not meant") }))
	require.Equal(t, since, tree(t, s.dir))

	t.Run("while it is recorded", func(t *testing.T) {
		tooLong := filepath.Join(s.dir, "c", strings.Repeat("d", 300), "x")
		require.Error(t, s.open(t).Apply(append(files(), File{Path: tooLong, After: []byte("x")}), succeeds))
		require.Equal(t, since, tree(t, s.dir))
	})
	require.NoError(t, s.open(t).Apply(files(), succeeds))
	require.NoError(t, s.open(t).TakeBack())
	require.Equal(t, "version = 3\n", string(s.read(t, s.main)))
	require.NoDirExists(t, filepath.Dir(filepath.Dir(s.dropIn)))
	require.NoDirExists(t, filepath.Dir(filepath.Dir(other)))
}

func TestWriteFails(t *testing.T) {
	s := newStand(t)
	files := s.files(t)
	files = append(files, File{Path: filepath.Join(s.main, "below a file"), After: []byte("x")})
	require.Error(t, s.open(t).Apply(files, succeeds))
	require.Equal(t, s.before, tree(t, s.dir))
	require.ErrorIs(t, s.open(t).Apply([]File{{Path: s.main, Before: []byte("x"), After: []byte("y")}}, succeeds),
		errdefs.ErrFailedPrecondition, "changed meanwhile")
	require.Equal(t, s.before, tree(t, s.dir))
}

// TestEdited: undo keeps edits by others. It removes its own lines even if others have edited the
// lines around them.
func TestEdited(t *testing.T) {
	s := newStand(t)
	s.apply(t)
	require.NoError(t, os.WriteFile(s.main, []byte("# mine\n"+imports+"  b = 2\n"), 0o640))
	require.NoError(t, os.WriteFile(s.dropIn, []byte("new\n# mine\n"), 0o600))
	err := s.open(t).TakeBack()
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, s.dropIn)
	require.NotContains(t, err.Error(), s.main)
	require.Equal(t, "# mine\n"+original+"  b = 2\n", string(s.read(t, s.main)))
	require.Equal(t, "new\n# mine\n", string(s.read(t, s.dropIn)))
	require.Equal(t, original, string(s.read(t, s.main+".before-thinsnap")), "the backup differs from the file")

	require.NoError(t, os.Remove(s.dropIn))
	require.NoError(t, s.open(t).TakeBack())
	require.True(t, s.open(t).Empty())
	require.NoDirExists(t, filepath.Dir(filepath.Dir(s.dropIn)))

	s = newStand(t)
	s.apply(t)
	edited := "version = 2\nimports = [\"mine\"]\n"
	require.NoError(t, os.WriteFile(s.main, []byte(edited), 0o640))
	require.ErrorContains(t, s.open(t).TakeBack(), s.main)
	require.Equal(t, edited, string(s.read(t, s.main)))
	require.NoFileExists(t, s.dropIn)
}

// TestRunAfterAnEdit: undo keeps a created file that others edited before a later run changed it.
func TestRunAfterAnEdit(t *testing.T) {
	s := newStand(t)
	s.apply(t)
	mine := "new\n# mine\n"
	require.NoError(t, os.WriteFile(s.dropIn, []byte(mine), 0o600))
	for _, more := range []string{"a\n", "a\nb\n"} {
		require.NoError(t, s.open(t).Apply([]File{
			{Path: s.dropIn, Before: s.read(t, s.dropIn), After: []byte(mine + more)},
		}, succeeds))
	}
	require.ErrorContains(t, s.open(t).TakeBack(), s.dropIn)
	require.Equal(t, mine+"a\nb\n", string(s.read(t, s.dropIn)))
}

// TestDirectoryBecomesALink: undo keeps a symbolic link that others put in place of a created directory.
func TestDirectoryBecomesALink(t *testing.T) {
	linked := func() (s stand, link string) {
		s = newStand(t)
		s.apply(t)
		link = filepath.Dir(s.dropIn)
		require.NoError(t, os.Rename(link, filepath.Join(s.dir, "moved")))
		require.NoError(t, os.Symlink(filepath.Join(s.dir, "moved"), link))
		return s, link
	}
	requireLink := func(s stand, link string) {
		t.Helper()
		target, err := os.Readlink(link)
		require.NoError(t, err)
		require.Equal(t, filepath.Join(s.dir, "moved"), target)
		require.DirExists(t, target)
		require.NoFileExists(t, s.dropIn)
	}
	s, link := linked()
	require.NoError(t, s.open(t).TakeBack())
	requireLink(s, link)
	require.True(t, s.open(t).Empty())

	s, link = linked()
	require.NoError(t, os.WriteFile(s.main, []byte("imports = [\"mine\"]\n"), 0o640))
	err := s.open(t).TakeBack()
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, s.main+" (symbolic links in place of created directories stay too: "+link+")")
	requireLink(s, link)
}

// TestChangedDuringTheCheck: a run that fails keeps the files that others changed during its check.
func TestChangedDuringTheCheck(t *testing.T) {
	bad := errors.New("not meant")
	apply := func(t *testing.T, s stand, change func()) error {
		t.Helper()
		err := s.open(t).Apply(s.files(t), func() error {
			change()
			return bad
		})
		require.ErrorIs(t, err, bad)
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		return err
	}
	t.Run("a created file", func(t *testing.T) {
		s := newStand(t)
		err := apply(t, s, func() { require.NoError(t, os.WriteFile(s.dropIn, []byte("theirs\n"), 0o600)) })
		require.ErrorContains(t, err, s.dropIn+" was changed or removed by others meanwhile")
		require.Equal(t, "theirs\n", string(s.read(t, s.dropIn)))
		require.Equal(t, original, string(s.read(t, s.main)), "it was not changed by others")
		err = s.open(t).TakeBack()
		require.ErrorContains(t, err, s.dropIn)
		require.NotContains(t, err.Error(), s.main)
		require.Equal(t, "theirs\n", string(s.read(t, s.dropIn)))
	})
	t.Run("a changed file", func(t *testing.T) {
		s := newStand(t)
		err := apply(t, s, func() { require.NoError(t, os.WriteFile(s.main, []byte(imports+"  b = 2\n"), 0o640)) })
		require.ErrorContains(t, err, s.main+" was changed or removed by others meanwhile")
		require.Equal(t, imports+"  b = 2\n", string(s.read(t, s.main)))
		require.NoFileExists(t, s.dropIn)
		require.NoError(t, s.open(t).TakeBack())
		require.Equal(t, original+"  b = 2\n", string(s.read(t, s.main)), "--undo removes only the lines of the run")
	})
	t.Run("a removed file", func(t *testing.T) {
		s := newStand(t)
		err := apply(t, s, func() { require.NoError(t, os.Remove(s.main)) })
		require.ErrorContains(t, err, s.main+" was changed or removed by others meanwhile")
		require.NoFileExists(t, s.main)
		require.NoError(t, s.open(t).TakeBack())
		require.NoFileExists(t, s.main)
	})
}

// TestKilled: after a kill at any point, the record can undo the changes, and a second run
// completes them.
func TestKilled(t *testing.T) {
	for done := range 3 {
		killed := func() stand {
			s := newStand(t)
			s.apply(t)
			if done < 2 {
				require.NoError(t, os.WriteFile(s.main, []byte(original), 0o640))
			}
			if done < 1 {
				require.NoError(t, os.Remove(s.dropIn))
			}
			return s
		}
		s := killed()
		require.NoError(t, s.open(t).TakeBack())
		require.Equal(t, s.before, tree(t, s.dir), done)

		s = killed()
		s.apply(t)
		require.NoError(t, s.open(t).TakeBack())
		require.Equal(t, s.before, tree(t, s.dir), done)
	}
}

func TestSymbolicLink(t *testing.T) {
	s := newStand(t)
	link := filepath.Join(s.dir, "link.toml")
	require.NoError(t, os.Symlink("main.toml", link))
	require.NoError(t, s.open(t).Apply([]File{{Path: link, Before: []byte(original), After: []byte(imports)}}, succeeds))
	target, err := os.Readlink(link)
	require.NoError(t, err)
	require.Equal(t, "main.toml", target)
	require.Equal(t, imports, string(s.read(t, s.main)))
	require.NoError(t, s.open(t).TakeBack())
	require.Equal(t, original, string(s.read(t, s.main)))
}

func TestOtherRecords(t *testing.T) {
	s := newStand(t)
	require.NoError(t, os.MkdirAll(filepath.Dir(s.record), 0o755))
	for text, class := range map[string]error{
		"{":              errdefs.ErrFailedPrecondition,
		`{"version": 2}`: errdefs.ErrNotImplemented,
	} {
		require.NoError(t, os.WriteFile(s.record, []byte(text), 0o600))
		_, err := Open(s.record)
		require.ErrorIs(t, err, class)
		require.ErrorContains(t, err, s.record)
	}
}

// TestRevert: lines are removed at their old position, or anywhere if they are unique.
func TestRevert(t *testing.T) {
	before, after := []byte("a\nb\nc\n"), []byte("a\nx\nc\n")
	h := between(before, after)
	require.Equal(t, []string{"b\n"}, h.Old)
	for text, want := range map[string]string{
		"a\nx\nc\n":    "a\nb\nc\n",
		"w\nx\nc":      "w\nb\nc",
		"n\na\nx\nc\n": "n\na\nb\nc\n",
		"x\na\nc\nx\n": "",
		"a\nc\n":       "",
	} {
		got, ok := h.revert([]byte(text))
		require.Equal(t, want != "", ok, text)
		require.Equal(t, want, string(got), text)
	}
	texts := []string{"", "a", "a\n", "a\nb", "a\nb\na\n", "b\na\nb\na\n"}
	for _, x := range texts {
		for _, y := range texts {
			got, ok := between([]byte(x), []byte(y)).revert([]byte(y))
			require.True(t, ok)
			require.Equal(t, x, string(got))
		}
	}
}
