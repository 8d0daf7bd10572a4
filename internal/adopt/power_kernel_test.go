package adopt

import (
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"github.com/thinsnap/thinsnap/internal/adopt/metadb"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/rootdir"
	"github.com/thinsnap/thinsnap/metadata"
)

// The marks at the end of something.
const (
	markReady   = "ready"
	markKilled  = "killed"
	markAdopted = "adopted"
	markUndone  = "undone"
)

// TestPowerCuts cuts the power in an adoption, and in its undoing, also in those that go on from a
// process that was killed. Containerd's databases and thinsnap's root have a disk each. Whatever the
// disks have not flushed may be lost.
func TestPowerCuts(t *testing.T) {
	dmtest.RequireThorough(t)
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	p := powerCuts{recorder: newRecorder(t), random: random, found: make(map[string]int)}
	p.history(t, "", "run")
	for range 100 {
		p.cut(t, p.draw(random, 0))
	}
	for range 3 {
		for _, h := range [][2]string{
			{"run", "run"}, {"run", "undo"}, {"undo", "undo"}, {"commit", "run"}, {"commit", "undo"}, {"commit back", "undo"},
		} {
			p.history(t, h[0], h[1])
			first := slices.Index(p.marks, markKilled)
			for range 4 {
				p.cut(t, p.draw(random, first))
			}
			for i, mark := range p.marks {
				if i > first && (mark == markAdopted || mark == markUndone) {
					p.cut(t, p.cutAfter(random, i, true))
				}
			}
		}
	}
	t.Logf("%d cuts: %v", p.cuts, p.found)
}

type powerCuts struct {
	*recorder
	random *rand.Rand
	before []state // without the mapped device, and with it
	cuts   int
	took   time.Duration // by an adoption
	found  map[string]int
}

// history records an adoption that is undone. If killed says so, a run or an undo is killed, at some
// time or in the commit of its transaction in containerd's database, and then says what ends it.
func (p *powerCuts) history(t *testing.T, killed, then string) {
	t.Helper()
	p.record(t, func(mark func(string)) {
		newStandIn(t, p.stand.dir)
		with := p.state(t)
		without := with
		without.device = map[string]IdleDevice{}
		p.before = []state{without, with}
		p.sync(t)
		mark(markReady)
		switch killed {
		case "run":
			p.killSometime(t, killed, rootdir.Adoption(p.options().Config.Root))
			mark(markKilled)
		case "commit":
			p.killCommit(t)
			mark(markKilled)
		}
		if then == "run" || killed == "undo" || killed == "commit back" {
			start := time.Now()
			_, err := run(t.Context(), p.options(), mark, fake{stand: p.stand})
			if p.took = time.Since(start); killed != "run" || !errdefs.IsAlreadyExists(err) {
				require.NoError(t, err)
			}
			mark(markAdopted)
		}
		switch killed {
		case "undo":
			p.killSometime(t, killed, p.adopt(openName))
			mark(markKilled)
		case "commit back":
			p.killCommitBack(t)
			mark(markKilled)
		}
		if err := undo(t.Context(), p.options().Config.Root, mark, fake{stand: p.stand}); !errdefs.IsNotFound(err) {
			require.NoError(t, err)
		}
		mark(markUndone)
		p.requireBack(t, p.before...)
	})
}

// killSometime kills another process that does something, some time after a file exists.
func (p *powerCuts) killSometime(t *testing.T, what, file string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestToBeKilled$")
	cmd.Env = append(os.Environ(), killedDo+"="+what, killedStand+"="+p.stand.dir)
	require.NoError(t, cmd.Start())
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond / 10) {
		if found, err := exists(file); err != nil || found {
			break
		}
	}
	time.Sleep(time.Duration(p.random.Int64N(int64(p.took))))
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait() // says that it was killed, unless it was faster
}

// killCommit leaves what a run leaves that is killed when bbolt has written its transaction, and has not
// synced it.
func (p *powerCuts) killCommit(t *testing.T) {
	t.Helper()
	p.kill(t, true)
	r := newRecord(p.options())
	unsynced(t, r.metaPath(), func() error {
		return metadb.Rename(t.Context(), r.metaPath(), r.From, r.Proxy,
			metadb.LeaveOut{"default": {"damaged": true}})
	})
}

// killCommitBack is killCommit of an undo.
func (p *powerCuts) killCommitBack(t *testing.T) {
	t.Helper()
	m := panicking{fake{stand: p.stand}}
	require.PanicsWithValue(t, errKilled, func() {
		_ = undo(t.Context(), p.options().Config.Root, func(string) {}, m)
	})
	r := newRecord(p.options())
	unsynced(t, r.metaPath(), func() error {
		return metadb.Restore(t.Context(), r.metaPath(), r.From, r.Proxy)
	})
}

// panicking is the machine of an undo that is killed before it changes containerd's database.
type panicking struct{ fake }

func (panicking) withdraw(context.Context, *metadata.Store) error { panic(errKilled) }

// unsynced has the end of a transaction, which bbolt writes to one of the first two pages when it has
// synced the others, in the kernel's cache only.
func unsynced(t *testing.T, path string, change func() error) {
	t.Helper()
	before, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, change())
	after, err := os.ReadFile(path)
	require.NoError(t, err)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	meta := 2 * os.Getpagesize()
	synced := slices.Concat(before[:meta], after[meta:])
	for _, b := range [][]byte{synced, after} {
		require.NoError(t, f.Sync())
		_, err := f.WriteAt(b, 0)
		require.NoError(t, err)
	}
	require.NoError(t, f.Close())
}

// cut cuts the power. What that leaves can be ended, and undone.
func (p *powerCuts) cut(t *testing.T, c cut) {
	t.Helper()
	p.cuts++
	text := p.describe(c)
	p.restore(t, c, func() {
		found := p.requireConsistent(t, text)
		p.found[found]++
		switch last := p.marks[c.after]; last {
		case markReady:
			require.Equal(t, markUndone, found, text)
		case markAdopted, markUndone:
			require.Equal(t, last, found, text)
		}
		p.runAgain(t, text)
	})
	p.restore(t, c, func() {
		err := p.tryUndo(t, fake{stand: p.stand})
		if errdefs.IsNotFound(err) {
			require.Contains(t, p.before, p.state(t), text)
			return
		}
		require.NoError(t, err, text)
		p.requireBack(t, p.before...)
	})
}

// runAgain ends what a cut has left, and undoes it.
func (p *powerCuts) runAgain(t *testing.T, text string) {
	t.Helper()
	record, err := Read(p.options().Config.Root)
	if !errdefs.IsNotFound(err) {
		require.NoError(t, err, text)
	}
	_, err = p.tryRun(t)
	switch record.Phase {
	case Back:
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition, text)
	case Adopted:
		require.ErrorIs(t, err, errdefs.ErrAlreadyExists, text)
		// Thinsnap has the pool zero new blocks when it opens it.
		require.NoError(t, p.change(func(k *kernel) { k.Skip = false }))
	default:
		require.NoError(t, err, text)
	}
	if record.Phase != Back {
		// An undo that came no further leaves it to the next one.
		require.NoError(t, remove(p.adopt(openName+newSuffix)))
		p.requireAdopted(t, all...)
	}
	p.undo(t)
	p.requireBack(t, p.before...)
}

// requireConsistent holds that at most one of the two runs, and that it is the one which containerd's
// database names. It returns what it found.
func (p *powerCuts) requireConsistent(t *testing.T, text string) string {
	t.Helper()
	r := newRecord(p.options())
	builtinStarts := true
	for _, path := range []string{r.poolPath(), r.snapshotsPath(), r.metaPath()} {
		found, err := exists(path)
		require.NoError(t, err, text)
		require.True(t, found, "%s: there is no %s", text, path)
		blocked, err := isBlocked(path)
		require.NoError(t, err, text)
		if blocked {
			builtinStarts = false
			path += savedSuffix
		}
		requireIntact(t, path, text)
	}
	keys := make(map[string]bool)
	for _, key := range all {
		keys[key] = true
	}
	isOld, err := names(t.Context(), r.metaPath(), r.From, keys)
	require.NoError(t, err, text)
	isNew, err := names(t.Context(), r.metaPath(), r.Proxy, keys)
	require.NoError(t, err, text)
	require.NotEqual(t, isOld, isNew, text)

	leave, err := Enter(p.options().Config.Root)
	if err != nil {
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition, text)
		require.False(t, isNew && builtinStarts, "%s: the built-in starts, and has lost its names", text)
		return "under way"
	}
	leave()
	store := rootdir.Store(p.options().Config.Root)
	serves, err := exists(store)
	require.NoError(t, err, text)
	require.Equal(t, isNew, serves, "%s: thinsnap starts; that it has the store: %v", text, serves)
	require.Equal(t, isOld, builtinStarts, "%s: thinsnap starts; that the built-in does: %v", text, builtinStarts)
	if !serves {
		return markUndone
	}
	requireIntact(t, store, text)
	return markAdopted
}

// requireIntact holds that a file is a database without damage.
func requireIntact(t *testing.T, path, text string) {
	t.Helper()
	db, err := bolt.Open(path, 0, &bolt.Options{ReadOnly: true, Timeout: time.Second})
	require.NoError(t, err, text)
	require.NoError(t, db.View(func(tx *bolt.Tx) error {
		for err := range tx.Check() {
			require.NoError(t, err, text)
		}
		return nil
	}))
	require.NoError(t, db.Close())
}
