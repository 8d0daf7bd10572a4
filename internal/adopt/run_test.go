package adopt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/plugins/snapshots/devmapper"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/internal/adopt/metadb"
	"github.com/thinsnap/thinsnap/internal/adopt/plan"
	"github.com/thinsnap/thinsnap/internal/rootdir"
	"github.com/thinsnap/thinsnap/metadata"
)

var all = []string{"default/2/a", "default/4/b", "default/5/c"}

func TestRunAndUndo(t *testing.T) {
	s := newFixture(t)
	before := s.state(t)
	t.Log(s.run(t))
	s.requireAdopted(t, all...)
	_, err := s.tryRun(t)
	require.ErrorIs(t, err, errdefs.ErrAlreadyExists)
	require.ErrorContains(t, err, "--undo")
	s.undo(t)
	s.requireBack(t, before)
	require.ErrorIs(t, s.tryUndo(t, fake{fixture: s}), errdefs.ErrNotFound)

	s.run(t)
	s.requireAdopted(t, all...)
	pull(t, s)
	s.undo(t)
	twin := newFixture(t)
	pull(t, twin)
	require.Equal(t, dump(t, newRecord(twin.options()).metaPath()), s.state(t).meta)
}

// TestFilesStayWhoseTheyAre: the databases remain the same files, and the texts have their owner
// and mode.
func TestFilesStayWhoseTheyAre(t *testing.T) {
	s := newFixture(t)
	r := newRecord(s.options())
	owner := os.Geteuid()
	if owner == 0 {
		owner = 1234
		require.NoError(t, os.Chown(r.poolPath(), owner, owner))
	}
	require.NoError(t, os.Chmod(r.poolPath(), 0o640))
	stat := func(path string) syscall.Stat_t {
		var st syscall.Stat_t
		require.NoError(t, syscall.Lstat(path, &st))
		return st
	}
	pool, meta := stat(r.poolPath()), stat(r.metaPath())
	s.run(t)
	text := stat(r.poolPath())
	require.Equal(t, pool.Mode, text.Mode)
	require.Equal(t, pool.Uid, text.Uid)
	require.Equal(t, pool.Gid, text.Gid)
	require.Equal(t, pool.Ino, stat(r.poolPath()+savedSuffix).Ino)
	require.Equal(t, meta.Ino, stat(r.metaPath()).Ino)
	require.Equal(t, meta.Mode, stat(r.metaPath()).Mode)
	s.undo(t)
	require.Equal(t, pool.Ino, stat(r.poolPath()).Ino)
	require.Equal(t, uint64(1), stat(r.poolPath()).Nlink)
}

// TestTextIsNoDatabase: containerd's code refuses the text, does not change it, and allocates no
// id.
func TestTextIsNoDatabase(t *testing.T) {
	s := newFixture(t)
	s.run(t)
	r := newRecord(s.options())
	texts := make(map[string]string)
	for _, path := range []string{r.poolPath(), r.snapshotsPath()} {
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Contains(t, string(b), "thinsnap adopt devmapper --undo")
		require.Contains(t, string(b), s.options().Config.Root)
		texts[path] = string(b)
	}
	t.Log(texts[r.poolPath()])
	// The first step of the built-in's NewPoolDevice.
	_, err := devmapper.NewPoolMetadata(r.poolPath())
	require.ErrorContains(t, err, "invalid database")
	store, err := storage.NewMetaStore(r.snapshotsPath())
	require.NoError(t, err)
	err = store.WithTransaction(t.Context(), true, func(ctx context.Context) error {
		_, err := storage.CreateSnapshot(ctx, snapshots.KindActive, "x", "")
		return err
	})
	require.ErrorContains(t, err, "invalid database")
	require.NoError(t, store.Close())
	for path, text := range texts {
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, text, string(b))
	}
}

// TestContainerdStartsMeanwhile: containerd waits for the lock of a file that it has opened, and
// would use that file after its renaming.
func TestContainerdStartsMeanwhile(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"pool.db", "metadata.db"} {
		s := newFixture(t)
		before := s.state(t)
		var waiting *os.File
		f := fake{fixture: s, onZero: func() {
			var err error
			waiting, err = os.OpenFile(filepath.Join(s.options().RootPath, name), os.O_RDWR, 0)
			require.NoError(t, err)
			require.ErrorIs(t, unix.Flock(int(waiting.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
		}}
		_, err := run(t.Context(), s.options(), func(string) {}, f)
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		require.ErrorContains(t, err, name)
		require.ErrorContains(t, err, "stop containerd")
		require.NoError(t, unix.Flock(int(waiting.Fd()), unix.LOCK_EX|unix.LOCK_NB))
		opener, err := openerOf(waiting)
		require.NoError(t, err)
		require.Empty(t, opener)
		require.NoError(t, waiting.Close())
		s.requireBack(t, before)
		s.run(t)
		s.requireAdopted(t, all...)
	}
}

// TestRunWhileDatabasesAreOpen: a process, such as containerd, has the databases open and locked.
func TestRunWhileDatabasesAreOpen(t *testing.T) {
	t.Parallel()
	s := newFixture(t)
	before := s.state(t)
	r := newRecord(s.options())
	for _, path := range []string{r.poolPath(), r.snapshotsPath(), r.metaPath()} {
		f, err := os.Open(path)
		require.NoError(t, err)
		require.NoError(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
		_, err = s.tryRun(t)
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		require.ErrorContains(t, err, path)
		require.NoError(t, f.Close())
		s.requireBack(t, before)
	}
	s.run(t)
	f, err := os.Open(r.metaPath())
	require.NoError(t, err)
	require.NoError(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
	require.ErrorIs(t, s.tryUndo(t, fake{fixture: s}), errdefs.ErrFailedPrecondition)
	require.NoError(t, f.Close())
	s.requireAdopted(t, all...)
	s.undo(t)
	s.requireBack(t, before)
}

// TestOneAtATime: neither a second run nor thinsnap can use the root.
func TestOneAtATime(t *testing.T) {
	t.Parallel()
	s := newFixture(t)
	root := s.options().Config.Root
	f := fake{fixture: s, onZero: func() {
		_, err := s.tryRun(t)
		require.ErrorIs(t, err, errdefs.ErrUnavailable)
		require.ErrorIs(t, s.tryUndo(t, fake{fixture: s}), errdefs.ErrUnavailable)
		_, err = Enter(root)
		require.ErrorIs(t, err, errdefs.ErrUnavailable)
		require.ErrorContains(t, err, "wait")
		err = Unfinished(root)
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		require.ErrorContains(t, err, "--yes")
	}}
	_, err := run(t.Context(), s.options(), func(string) {}, f)
	require.NoError(t, err)
	leave, err := Enter(root)
	require.NoError(t, err)
	require.ErrorIs(t, s.tryUndo(t, fake{fixture: s}), errdefs.ErrUnavailable)
	leave()
	s.undo(t)
}

// TestErrors: an error before the snapshotter is renamed leaves no change.
func TestErrors(t *testing.T) {
	for _, method := range []string{"lock", "idle", "zero", "deactivate"} {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			s := newFixture(t)
			before := s.state(t)
			_, err := run(t.Context(), s.options(), func(string) {}, fake{fixture: s, fail: method})
			require.ErrorIs(t, err, errFake)
			s.requireBack(t, before)
			if method == "zero" || method == "deactivate" {
				require.ErrorContains(t, err, "everything is as it was before")
			}
			s.run(t)
			s.requireAdopted(t, all...)
		})
	}
	s := newFixture(t)
	before := s.state(t)
	p, err := run(t.Context(), s.options(), func(string) {}, fake{fixture: s, obstacle: true})
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.Len(t, p.Obstacles, 1)
	s.requireBack(t, before)
	for _, name := range []string{"pool.db", "metadata.db"} {
		path := filepath.Join(s.options().RootPath, name+savedSuffix)
		require.NoError(t, os.WriteFile(path, []byte("the user's"), 0o600))
		_, err = s.tryRun(t)
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		require.ErrorContains(t, err, path)
		require.NoError(t, os.Remove(path))
	}
	store := rootdir.Store(s.options().Config.Root)
	require.NoError(t, os.WriteFile(store, []byte("thinsnap's"), 0o600))
	_, err = s.tryRun(t)
	require.ErrorIs(t, err, errdefs.ErrAlreadyExists)
	require.NoError(t, os.Remove(store))

	ctx, cancel := context.WithCancel(t.Context())
	_, err = run(ctx, s.options(), func(string) {}, fake{fixture: s, onZero: cancel})
	require.ErrorIs(t, err, context.Canceled)
	s.requireBack(t, before)

	s.run(t)
	err = s.tryUndo(t, fake{fixture: s, fail: "withdraw"})
	require.ErrorIs(t, err, errFake)
	require.NoError(t, Unfinished(s.options().Config.Root), "thinsnap must be able to start")
	s.requireAdopted(t, all...)
	s.undo(t)
	s.requireBack(t, before)
}

// TestGoOnAfterAChange: the built-in's databases change after the plan.
func TestGoOnAfterAChange(t *testing.T) {
	devices := 100
	change := func(s fixture) {
		devices++
		r := newRecord(s.options())
		saved := filepath.Join(filepath.Dir(r.poolPath()), "saved")
		require.NoError(t, os.Rename(r.poolPath(), saved))
		require.NoError(t, os.Rename(r.poolPath()+savedSuffix, r.poolPath()))
		s.builtinPool(t, func(ctx context.Context, pool *devmapper.PoolMetadata) error {
			return pool.AddDevice(ctx, &devmapper.DeviceInfo{Name: fmt.Sprintf("%s-snap-%d", testPool, devices), State: devmapper.Removed})
		})
		require.NoError(t, os.Rename(r.poolPath(), r.poolPath()+savedSuffix))
		require.NoError(t, os.Rename(saved, r.poolPath()))
	}
	s := newFixture(t)
	killed := errors.New("killed")
	f := fake{fixture: s, onDeactivate: func() { panic(killed) }}
	require.PanicsWithValue(t, killed, func() { _, _ = run(t.Context(), s.options(), func(string) {}, f) })
	change(s)
	s.run(t)
	s.requireAdopted(t, all...)
	require.NoError(t, os.Rename(s.adopt(closedName), s.adopt(openName)))
	s.setPhase(t, Forward)
	change(s)
	_, err := s.tryRun(t)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "--undo")
	s.undo(t)

	// Other options.
	require.PanicsWithValue(t, killed, func() { _, _ = run(t.Context(), s.options(), func(string) {}, f) })
	for _, change := range []func(o *plan.Options){
		func(o *plan.Options) { o.Proxy = "other" }, func(o *plan.Options) { o.Pool = "other" },
		func(o *plan.Options) { o.RootPath = "/other" }, func(o *plan.Options) { o.ContainerdRoot = "/other" },
		func(o *plan.Options) { o.From = "other" },
	} {
		o := s.options()
		change(&o)
		_, err := run(t.Context(), o, func(string) {}, fake{fixture: s})
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		require.ErrorContains(t, err, "other")
	}
	// An unknown name.
	s.meta(t, nameNew(t))
	_, err = s.tryRun(t)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, `"new"`)
	s.undo(t)
}

// TestCollectorRanMeanwhile: containerd has removed names since a run was killed. Run and Undo
// succeed without them.
func TestCollectorRanMeanwhile(t *testing.T) {
	killed := errors.New("killed")
	run := func(s fixture, f fake) {
		f.fixture = s
		require.PanicsWithValue(t, killed, func() { _, _ = run(t.Context(), s.options(), func(string) {}, f) })
	}
	collect := func(s fixture, snapshotter string, names ...string) {
		s.meta(t, func(v1 *bolt.Bucket) {
			b := v1.Bucket([]byte("default")).Bucket([]byte("snapshots")).Bucket([]byte(snapshotter))
			for _, name := range names {
				require.NoError(t, b.DeleteBucket([]byte(name)))
			}
		})
	}
	s := newFixture(t)
	run(s, fake{onDeactivate: func() { panic(killed) }})
	collect(s, "devmapper", "c")
	s.run(t)
	s.requireAdopted(t, all...)
	require.NotContains(t, s.state(t).meta, "default/5/c")
	s.undo(t)
	require.NotContains(t, s.state(t).meta, "default/5/c")

	// All names are removed after the renaming.
	s = newFixture(t)
	s.run(t)
	s.setPhase(t, Forward)
	require.NoError(t, os.Remove(rootdir.Store(s.options().Config.Root)))
	collect(s, testProxy, "a", "b", "c")
	s.undo(t)
	require.NotContains(t, s.state(t).meta, testProxy)
	require.Contains(t, s.state(t).meta, `defaults/snapshotter = "devmapper"`)
}

// TestUndoOfAChangedStore: it is refused.
func TestUndoOfAChangedStore(t *testing.T) {
	t.Parallel()
	s := newFixture(t)
	s.run(t)
	store, err := metadata.Open(rootdir.Store(s.options().Config.Root), metadata.Options{})
	require.NoError(t, err)
	err = s.tryUndo(t, fake{fixture: s})
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "systemctl stop")
	before, err := contentsOf(t.Context(), store)
	require.NoError(t, err)
	require.NoError(t, store.Update(t.Context(), func(tx *metadata.Tx) error {
		for i := range 12 {
			if err := tx.Keep(metadata.KeptRecord{VolumeID: uint32(100 + i)}); err != nil {
				return err
			}
		}
		_, err := tx.Remove("default/5/c", now())
		return err
	}))
	after, err := contentsOf(t.Context(), store)
	require.NoError(t, err)
	require.Len(t, differences(before, after), 13)
	require.NoError(t, store.Close())
	err = s.tryUndo(t, fake{fixture: s})
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	for _, want := range []string{`snapshot "default/5/c" is gone`, "leftover 100 is new", "and 3 more"} {
		require.ErrorContains(t, err, want)
	}
	require.NoError(t, Unfinished(s.options().Config.Root))
	require.NoError(t, os.Remove(rootdir.Store(s.options().Config.Root)))
	err = s.tryUndo(t, fake{fixture: s})
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "no way back")
}

func TestRecordOfAnotherVersion(t *testing.T) {
	s := newFixture(t)
	s.run(t)
	r, err := Read(s.options().Config.Root)
	require.NoError(t, err)
	r.Format++
	require.NoError(t, r.put(rootdir.Adoption(s.options().Config.Root), openName))
	_, err = Read(s.options().Config.Root)
	require.ErrorIs(t, err, errdefs.ErrNotImplemented)
	require.ErrorIs(t, s.tryUndo(t, fake{fixture: s}), errdefs.ErrNotImplemented)
	require.ErrorIs(t, Unfinished(s.options().Config.Root), errdefs.ErrFailedPrecondition)
	require.NoError(t, os.WriteFile(s.adopt(openName), []byte("x"), 0o600))
	_, err = s.tryRun(t)
	require.ErrorIs(t, err, errdefs.ErrDataLoss)
	_, err = toJSON(metadb.LeaveOut{"default": {"\xff": true}})
	require.ErrorIs(t, err, errdefs.ErrNotImplemented)
}

func TestUnblockWhatIsNotBlocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.db")
	require.ErrorIs(t, unblock(path), errdefs.ErrDataLoss)
	require.NoError(t, os.WriteFile(path, []byte(textBegin), 0o600))
	require.ErrorIs(t, unblock(path), errdefs.ErrDataLoss)
	require.NoError(t, os.WriteFile(path, []byte("a new database"), 0o600))
	require.NoError(t, unblock(path))
	require.NoError(t, os.WriteFile(path+savedSuffix, []byte("the old one"), 0o600))
	require.ErrorIs(t, unblock(path), errdefs.ErrFailedPrecondition)
	for name, want := range map[string]string{path: "a new database", path + savedSuffix: "the old one"} {
		b, err := os.ReadFile(name)
		require.NoError(t, err)
		require.Equal(t, want, string(b))
	}
	require.ErrorIs(t, requireRoom(t.TempDir(), 1<<60), errdefs.ErrResourceExhausted)
	for errno, want := range map[error]error{
		syscall.ENOSPC: errdefs.ErrResourceExhausted, syscall.EROFS: errdefs.ErrFailedPrecondition,
		syscall.EIO: errdefs.ErrUnavailable,
	} {
		require.ErrorIs(t, explain("write", "x", fmt.Errorf("y: %w", errno)), want)
	}
}

// TestBackupOfPoolCalledMeta: the pool's database has the same file name as containerd's database.
func TestBackupOfPoolCalledMeta(t *testing.T) {
	s := newFixture(t)
	o := s.options()
	o.Pool = "meta"
	require.NoError(t, os.Rename(newRecord(s.options()).poolPath(), newRecord(o).poolPath()))
	a, err := begin(o.Config.Root, func(string) {}, fake{fixture: s})
	require.NoError(t, err)
	r := newRecord(o)
	require.NoError(t, a.backUp(&r))
	require.NoError(t, a.end())
	for path, backup := range map[string]string{
		r.metaPath(): "meta.db", r.poolPath(): "devmapper/meta.db", r.snapshotsPath(): "devmapper/metadata.db",
	} {
		same, err := sameContent(path, filepath.Join(s.adopt(backupName), backup))
		require.NoError(t, err)
		require.True(t, same, backup)
	}
	sum, err := checksum(r.poolPath())
	require.NoError(t, err)
	require.Equal(t, sum, r.SHA256["meta.db"])
}
