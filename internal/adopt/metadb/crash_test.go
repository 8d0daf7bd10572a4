package metadb

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/internal/dmtest/boltdamage"
)

// TestKilled: whichever writes of Rename and Restore reached the disk, the database has the content
// before or after, and Renamed returns which one.
func TestKilled(t *testing.T) {
	d := makeDamaged(t)
	page := os.Getpagesize()
	r := rand.New(rand.NewPCG(1, 2))
	for _, step := range []struct {
		do      func() error
		renamed bool
	}{
		{func() error { return Rename(t.Context(), d.path, old, fresh, d.leave) }, true},
		{func() error { return Restore(t.Context(), d.path, old, fresh) }, false},
	} {
		before, was := file(t, d.path), dump(t, d.path)
		require.NoError(t, step.do())
		after, is := file(t, d.path), dump(t, d.path)
		require.GreaterOrEqual(t, len(after), len(before))
		grown := append(before, make([]byte, len(after)-len(before))...)
		var meta int
		var pages []int
		for at := 0; at < len(after); at += page {
			switch same := bytes.Equal(grown[at:at+page], after[at:at+page]); {
			case !same && at < 2*page:
				meta++
			case !same:
				pages = append(pages, at)
			}
		}
		require.Equal(t, 1, meta, "not one transaction")
		require.NotEmpty(t, pages)

		path := filepath.Join(t.TempDir(), "meta.db")
		check := func(b []byte, want []string, renamed bool) {
			require.NoError(t, os.WriteFile(path, b, 0o600))
			require.Equal(t, want, dump(t, path))
			is, err := Renamed(t.Context(), path, old, fresh)
			require.NoError(t, err)
			require.Equal(t, renamed, is)
		}
		for range 20 {
			b := slices.Clone(grown)
			for _, at := range pages {
				if r.IntN(2) == 0 {
					copy(b[at:at+page], after[at:])
				}
			}
			check(b, was, !step.renamed)
		}
		// The meta page of the transaction is written last, and may be torn.
		b := slices.Concat(grown[:2*page], after[2*page:])
		check(b, was, !step.renamed)
		copy(b[:16+32], after)
		copy(b[page:page+16+32], after[page:])
		check(b, was, !step.renamed)
		check(after, is, step.renamed)
	}
}

// TestCommitFails: the error says so, and Renamed returns false.
func TestCommitFails(t *testing.T) {
	const env = "METADB_TEST_RENAME"
	if path := os.Getenv(env); path != "" {
		// This is a child process, because its files cannot grow.
		signal.Ignore(unix.SIGXFSZ)
		info, err := os.Stat(path)
		require.NoError(t, err)
		limit := unix.Rlimit{Cur: uint64(info.Size()), Max: uint64(info.Size())}
		require.NoError(t, unix.Setrlimit(unix.RLIMIT_FSIZE, &limit))
		err = Rename(t.Context(), path, old, fresh, nil)
		fmt.Println(err)
		require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
		return
	}
	d := makeDamaged(t)
	require.NoError(t, os.WriteFile(d.path, boltdamage.Small(t, d.path), 0o600)) // without free pages
	before := dump(t, d.path)
	child := exec.Command(os.Args[0], "-test.run", "^TestCommitFails$")
	child.Env = append(os.Environ(), env+"="+d.path)
	out, err := child.CombinedOutput()
	require.NoError(t, err, string(out))
	require.Contains(t, string(out), "the commit failed, and may or may not have changed the database")
	require.Contains(t, string(out), "make room on its disk, and try again")
	require.Equal(t, before, dump(t, d.path))
	renamed, err := Renamed(t.Context(), d.path, old, fresh)
	require.NoError(t, err)
	require.False(t, renamed)
	require.NoError(t, Rename(t.Context(), d.path, old, fresh, nil))
}

func file(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return b
}
