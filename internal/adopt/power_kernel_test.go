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

// The marks in the log, each at the end of an action.
const (
	markReady   = "ready"
	markKilled  = "killed"
	markAdopted = "adopted"
	markUndone  = "undone"
)

// TestPowerCuts cuts the power during adoptions and undos, some of which continue a killed one.
// containerd's databases and thinsnap's root have a disk each. Any write that a disk has not
// flushed may be lost.
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
	before []state // the state before the adoption, without and with the mapped device
	cuts   int
	took   time.Duration // the duration of an adoption
	found  map[string]int
}

// history records an adoption and its undo. If killed is not empty, a run or an undo is killed at a
// random time, or in the commit of its transaction in containerd's database. then is the operation
// that completes it.
func (p *powerCuts) history(t *testing.T, killed, then string) {
	t.Helper()
	p.record(t, func(mark func(string)) {
		newFixtureIn(t, p.fixture.dir)
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
			_, err := run(t.Context(), p.options(), mark, fake{fixture: p.fixture})
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
		if err := undo(t.Context(), p.options().Config.Root, mark, fake{fixture: p.fixture}); !errdefs.IsNotFound(err) {
			require.NoError(t, err)
		}
		mark(markUndone)
		p.requireBack(t, p.before...)
	})
}

// killSometime starts a run or an undo in another process, and kills it at a random time after
// file exists.
func (p *powerCuts) killSometime(t *testing.T, what, file string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestToBeKilled$")
	cmd.Env = append(os.Environ(), killedDo+"="+what, killedFixture+"="+p.fixture.dir)
	require.NoError(t, cmd.Start())
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond / 10) {
		if found, err := exists(file); err != nil || found {
			break
		}
	}
	time.Sleep(time.Duration(p.random.Int64N(int64(p.took))))
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait() // fails unless the process ended before it was killed
}

// killCommit leaves the state of a run that is killed when bbolt has written its transaction but
// not synced it.
func (p *powerCuts) killCommit(t *testing.T) {
	t.Helper()
	p.kill(t, true)
	r := newRecord(p.options())
	unsynced(t, r.metaPath(), func() error {
		return metadb.Rename(t.Context(), r.metaPath(), r.From, r.Proxy,
			metadb.LeaveOut{"default": {"damaged": true}})
	})
}

// killCommitBack is killCommit for an undo.
func (p *powerCuts) killCommitBack(t *testing.T) {
	t.Helper()
	m := panicking{fake{fixture: p.fixture}}
	require.PanicsWithValue(t, errKilled, func() {
		_ = undo(t.Context(), p.options().Config.Root, func(string) {}, m)
	})
	r := newRecord(p.options())
	unsynced(t, r.metaPath(), func() error {
		return metadb.Restore(t.Context(), r.metaPath(), r.From, r.Proxy)
	})
}

// panicking is the machine of an undo that ends before it changes containerd's database.
type panicking struct{ fake }

func (panicking) withdraw(context.Context, *metadata.Store) error { panic(errKilled) }

// unsynced leaves the end of a transaction in the kernel's cache only. bbolt writes it to one of
// the first two pages after it has synced the others.
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

// cut cuts the power, completes the interrupted operation, and on a second copy undoes it.
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
		err := p.tryUndo(t, fake{fixture: p.fixture})
		if errdefs.IsNotFound(err) {
			require.Contains(t, p.before, p.state(t), text)
			return
		}
		require.NoError(t, err, text)
		p.requireBack(t, p.before...)
	})
}

// runAgain completes the operation that a cut interrupted, and undoes it.
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
		// After a complete adoption and a boot, the program that loads the pool does this.
		require.NoError(t, p.change(func(k *kernel) { k.Skip = false }))
	default:
		require.NoError(t, err, text)
	}
	if record.Phase != Back {
		// An earlier undo may have left this file for the next one.
		require.NoError(t, remove(p.adopt(openName+newSuffix)))
		p.requireAdopted(t, all...)
	}
	p.undo(t)
	p.requireBack(t, p.before...)
}

// requireConsistent fails if both the built-in and thinsnap start, or if containerd's database
// names the other one. It returns the state that it found.
func (p *powerCuts) requireConsistent(t *testing.T, text string) string {
	t.Helper()
	r := newRecord(p.options())
	builtinStarts := true
	for _, path := range []string{r.poolPath(), r.snapshotsPath(), r.metaPath()} {
		found, err := exists(path)
		require.NoError(t, err, text)
		require.True(t, found, "%s: %s does not exist", text, path)
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
	isOld, err := hasNames(t.Context(), r.metaPath(), r.From, keys)
	require.NoError(t, err, text)
	isNew, err := hasNames(t.Context(), r.metaPath(), r.Proxy, keys)
	require.NoError(t, err, text)
	require.NotEqual(t, isOld, isNew, text)

	leave, err := Enter(p.options().Config.Root)
	if err != nil {
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition, text)
		require.False(t, isNew && builtinStarts, "%s: the built-in starts without its names", text)
		return "under way"
	}
	leave()
	store := rootdir.Store(p.options().Config.Root)
	serves, err := exists(store)
	require.NoError(t, err, text)
	require.Equal(t, isNew, serves, "%s: thinsnap starts; its store exists: %v", text, serves)
	require.Equal(t, isOld, builtinStarts, "%s: thinsnap starts; the built-in starts: %v", text, builtinStarts)
	if !serves {
		return markUndone
	}
	requireIntact(t, store, text)
	return markAdopted
}

// requireIntact fails if a file is not a database, or is damaged.
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
