package tree

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// build makes one file of each kind, with fixed times.
func build(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	at := func(name string) string { return filepath.Join(root, name) }
	require.NoError(t, os.MkdirAll(at("dir/sub"), 0o755))
	require.NoError(t, os.WriteFile(at("file"), []byte("content"), 0o644))
	require.NoError(t, os.WriteFile(at("other"), []byte("content"), 0o644))
	require.NoError(t, os.Link(at("file"), at("dir/link")))
	require.NoError(t, os.Symlink("file", at("symlink")))
	require.NoError(t, os.WriteFile(at("sparse"), nil, 0o600))
	require.NoError(t, os.Truncate(at("sparse"), 1<<20))
	require.NoError(t, unix.Mkfifo(at("fifo"), 0o600))
	setTimes(t, root)
	return root
}

// setTimes sets all times to a fixed value.
func setTimes(t *testing.T, root string) {
	t.Helper()
	times := []unix.Timespec{{Sec: 1700000000}, {Sec: 1700000000}}
	require.NoError(t, filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return unix.UtimesNanoAt(unix.AT_FDCWD, path, times, unix.AT_SYMLINK_NOFOLLOW)
	}))
}

func TestCompareFindsNothingInEqualTrees(t *testing.T) {
	a, err := Walk(build(t))
	require.NoError(t, err)
	b, err := Walk(build(t))
	require.NoError(t, err)
	require.Len(t, a, 9)
	require.Empty(t, Compare(a, b))
	require.Equal(t, []string{"dir/link"}, a["file"].Links)
	require.True(t, a["sparse"].Sparse)
}

func TestCompareFindsEachKindOfDifference(t *testing.T) {
	for _, test := range []struct {
		name                 string
		change               func(at func(string) string) error
		want                 []string
		keepTimes, needsRoot bool
	}{
		{name: "missing", want: []string{`"other" is missing`},
			change: func(at func(string) string) error { return os.Remove(at("other")) }},
		{name: "extra", want: []string{`"extra" is extra`},
			change: func(at func(string) string) error { return os.Mkdir(at("extra"), 0o755) }},
		{name: "type", want: []string{`"dir/sub": mode 0100755, not 040755`, `"dir/sub": content`},
			change: func(at func(string) string) error {
				if err := os.Remove(at("dir/sub")); err != nil {
					return err
				}
				return os.WriteFile(at("dir/sub"), nil, 0o755)
			}},
		{name: "permissions", want: []string{`"other": mode 0100600, not 0100644`},
			change: func(at func(string) string) error { return os.Chmod(at("other"), 0o600) }},
		{name: "setuid", want: []string{`"other": mode 0104644, not 0100644`},
			change: func(at func(string) string) error { return os.Chmod(at("other"), 0o644|os.ModeSetuid) }},
		{name: "mode of the root", want: []string{`".": mode 040700, not`},
			change: func(at func(string) string) error { return os.Chmod(at("."), 0o700) }},
		{name: "uid", needsRoot: true, want: []string{`"symlink": uid 5, not 0`},
			change: func(at func(string) string) error { return os.Lchown(at("symlink"), 5, -1) }},
		{name: "gid", needsRoot: true, want: []string{`"dir": gid 6, not 0`},
			change: func(at func(string) string) error { return os.Lchown(at("dir"), -1, 6) }},
		{name: "content", want: []string{`"other": content`},
			change: func(at func(string) string) error { return os.WriteFile(at("other"), []byte("CONTENT"), 0) }},
		{name: "size", want: []string{`"other": size 8, not 7`, `"other": content`},
			change: func(at func(string) string) error { return os.WriteFile(at("other"), []byte("contents"), 0) }},
		{name: "time", keepTimes: true, want: []string{`"other": modified 2023-11-14T22:13:20.000000001Z, not 2023-11-14T22:13:20Z`},
			change: func(at func(string) string) error {
				when := time.Unix(1700000000, 1)
				return os.Chtimes(at("other"), when, when)
			}},
		{name: "target", want: []string{`"symlink": target life, not file`},
			change: func(at func(string) string) error {
				if err := os.Remove(at("symlink")); err != nil {
					return err
				}
				return os.Symlink("life", at("symlink"))
			}},
		{name: "hard link broken", want: []string{`"dir/link": other names , not file`, `"file": other names , not dir/link`},
			change: func(at func(string) string) error {
				if err := os.Remove(at("dir/link")); err != nil {
					return err
				}
				return os.WriteFile(at("dir/link"), []byte("content"), 0o644)
			}},
		{name: "hard link made", want: []string{`"other": other names dir/link, file, not `, `"file": other names dir/link, other, not dir/link`},
			change: func(at func(string) string) error {
				if err := os.Remove(at("other")); err != nil {
					return err
				}
				return os.Link(at("file"), at("other"))
			}},
		{name: "sparse", want: []string{`"sparse": sparse false, not true`},
			change: func(at func(string) string) error { return os.WriteFile(at("sparse"), make([]byte, 1<<20), 0) }},
		{name: "attribute", want: []string{`"other": attribute user.new "value", not absent`},
			change: func(at func(string) string) error { return unix.Lsetxattr(at("other"), "user.new", []byte("value"), 0) }},
		{name: "empty attribute of a directory", want: []string{`"dir": attribute user.new "", not absent`},
			change: func(at func(string) string) error { return unix.Lsetxattr(at("dir"), "user.new", nil, 0) }},
		{name: "device", needsRoot: true, want: []string{`"fifo": mode 020600, not 010600`, `"fifo": device 0x103, not 0x0`},
			change: func(at func(string) string) error {
				if err := os.Remove(at("fifo")); err != nil {
					return err
				}
				return unix.Mknod(at("fifo"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3)))
			}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.needsRoot && os.Geteuid() != 0 {
				t.Skip("needs root")
			}
			a, err := Walk(build(t))
			require.NoError(t, err)
			root := build(t)
			require.NoError(t, test.change(func(name string) string { return filepath.Join(root, name) }))
			if !test.keepTimes {
				setTimes(t, root)
			}
			b, err := Walk(root)
			require.NoError(t, err)
			found := strings.Join(Compare(a, b), "\n")
			require.NotEmpty(t, found)
			for _, want := range test.want {
				require.Contains(t, found, want)
			}
			require.NotEmpty(t, Compare(b, a), "the other way round")
		})
	}
}

func TestWalkFails(t *testing.T) {
	_, err := Walk(filepath.Join(t.TempDir(), "absent"))
	require.ErrorIs(t, err, os.ErrNotExist)
}
