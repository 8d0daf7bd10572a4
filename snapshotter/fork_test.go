package snapshotter_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter"
)

func from(token string) snapshots.Opt { return labels(snapshotter.LabelFrom, token) }

func (b *bench) issue(t *testing.T, key string) snapshots.Opt {
	t.Helper()
	token, err := b.IssueFork(t.Context(), key)
	require.NoError(t, err)
	require.Len(t, token, 64)
	return from(token)
}

// TestFork: a fork has the content of its moment, and is then an ordinary snapshot.
func TestFork(t *testing.T) {
	for _, parent := range []string{"", "layer"} {
		t.Run("parent "+parent, func(t *testing.T) {
			config := fakeConfig()
			config.MaxBytes = 128 << 20
			b := newBench(t, config)
			b.layer(t, "layer", "", "of the layer")
			source := b.prepare(t, "source", parent, labels(snapshotter.LabelSize, "128MiB"))
			require.NoError(t, b.pool.Open(source, 1))
			require.NoError(t, b.pool.Write(source, "first"))
			mounts, err := b.Prepare(t.Context(), "fork", parent, b.issue(t, "source"), labels("other", "label"))
			require.NoError(t, err)
			require.NoError(t, b.pool.Write(source, "second"))
			fork := mounts[0].Source
			content, err := b.pool.Read(fork)
			require.NoError(t, err)
			require.Equal(t, "first", content)
			require.EqualValues(t, 128<<20, b.pool.Bytes(fork))
			again, err := b.Mounts(t.Context(), "fork")
			require.NoError(t, err)
			require.Equal(t, mounts, again)
			info, err := b.Stat(t.Context(), "fork")
			require.NoError(t, err)
			require.Equal(t, parent, info.Parent)
			require.Equal(t, snapshots.KindActive, info.Kind)
			require.Equal(t, map[string]string{"other": "label"}, info.Labels)
			require.NoError(t, b.store.View(t.Context(), func(tx *metadata.Tx) error {
				of, err := tx.Get("source")
				require.NoError(t, err)
				rec, err := tx.Get("fork")
				require.NoError(t, err)
				require.Equal(t, of.Base, rec.Base)
				return nil
			}))
			require.NoError(t, b.pool.Open(source, -1))
			require.NoError(t, b.Remove(t.Context(), "source"))
			require.NoError(t, b.Commit(t.Context(), "committed", "fork"))
			require.Equal(t, "first", b.content(t, "committed"))
			b.requireNoLeftovers(t)
		})
	}
}

// TestForkToken: a token is for one fork, of its source, in its namespace and with its parent, until a
// restart.
func TestForkToken(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.layer(t, "k8s.io/1/layer", "", "")
	b.layer(t, "k8s.io/2/other", "", "")
	b.prepare(t, "k8s.io/3/source", "k8s.io/1/layer")
	token := b.issue(t, "k8s.io/3/source")
	refused := func(key, parent string, opts ...snapshots.Opt) {
		t.Helper()
		_, err := b.Prepare(t.Context(), key, parent, opts...)
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
		require.ErrorContains(t, err, snapshotter.LabelFrom)
		b.requireNoLeftovers(t)
	}
	for _, other := range []string{"", "k8s.io/3/source", "unknown", fmt.Sprintf("%064d", 0)} {
		refused("k8s.io/4/fork", "k8s.io/1/layer", from(other))
	}
	refused("moby/4/fork", "k8s.io/1/layer", token)
	refused("fork", "k8s.io/1/layer", token)
	refused("k8s.io/4/fork", "k8s.io/2/other", token)
	refused("k8s.io/4/fork", "", token)
	_, err := b.Prepare(t.Context(), "k8s.io/4/fork", "unknown", token)
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	_, err = b.View(t.Context(), "k8s.io/4/view", "k8s.io/1/layer", token)
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)

	_, err = b.Prepare(t.Context(), "k8s.io/4/fork", "k8s.io/1/layer", token)
	require.NoError(t, err)
	_, err = b.Prepare(t.Context(), "k8s.io/4/fork", "k8s.io/1/layer", token)
	require.ErrorIs(t, err, errdefs.ErrAlreadyExists)
	refused("k8s.io/5/fork", "k8s.io/1/layer", token)

	token = b.issue(t, "k8s.io/3/source")
	b.restart(t, false)
	refused("k8s.io/5/fork", "k8s.io/1/layer", token)
}

// TestForkTokenIsNotStored: Prepare, Update and Commit do not store a token, and a token from an image is
// ignored.
func TestForkTokenIsNotStored(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.prepare(t, "test/1/source", "")
	require.NoError(t, b.pool.Write(b.prepare(t, "test/2/source", ""), "of the source"))
	token := b.issue(t, "test/2/source")
	content, err := b.pool.Read(b.prepare(t, unpackKey, "", token))
	require.NoError(t, err)
	require.Empty(t, content, "it is no fork")
	info, err := b.Update(t.Context(), snapshots.Info{Name: "test/1/source", Labels: map[string]string{snapshotter.LabelFrom: "a", "b": "c"}})
	require.NoError(t, err)
	require.Equal(t, map[string]string{"b": "c"}, info.Labels)
	_, err = b.Update(t.Context(), snapshots.Info{Name: "test/1/source", Labels: map[string]string{snapshotter.LabelFrom: "a"}},
		"labels."+snapshotter.LabelFrom)
	require.NoError(t, err)
	require.NoError(t, b.Commit(t.Context(), "layer", "test/1/source", token))
	require.NoError(t, b.WalkRecords(t.Context(), func(rec metadata.Snapshot) error {
		require.NotContains(t, rec.Labels, snapshotter.LabelFrom)
		return nil
	}))
}

// TestForkIsRefused: a refused fork leaves nothing behind, and its token can be used again.
func TestForkIsRefused(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.layer(t, "layer", "", "")
	source := b.prepare(t, "source", "layer")
	_, err := b.View(t.Context(), "view", "layer")
	require.NoError(t, err)
	b.prepare(t, unpackKey, "")
	for key, want := range map[string]error{
		"layer": errdefs.ErrFailedPrecondition, "view": errdefs.ErrFailedPrecondition, unpackKey: errdefs.ErrFailedPrecondition,
		"unknown": errdefs.ErrNotFound,
	} {
		_, err := b.IssueFork(t.Context(), key)
		require.ErrorIs(t, err, want, key)
	}
	token := b.issue(t, "source")
	fork := func(want error, opts ...snapshots.Opt) {
		t.Helper()
		_, err := b.Prepare(t.Context(), "fork", "layer", append(opts, token)...)
		if want == nil {
			require.NoError(t, err)
			return
		}
		require.ErrorIs(t, err, want)
		b.requireNoLeftovers(t)
		require.NoError(t, b.pool.Write(source, "it is resumed, and writable"))
	}
	fork(errdefs.ErrInvalidArgument, labels(snapshotter.LabelSize, "32MiB"))
	b.pool.SetStatus(func(s *pool.Status) { s.Data.Used = s.Data.Total / 100 * 95 })
	fork(errdefs.ErrResourceExhausted)
	b.pool.SetStatus(func(s *pool.Status) { s.Data.Used, s.Mode = 0, thin.ModeReadOnly })
	fork(errdefs.ErrUnavailable)
	b.pool.SetStatus(func(s *pool.Status) { s.Mode = thin.ModeReadWrite })
	for _, method := range []string{"Suspend", "CreateSnap", "Activate", "SetTransactionID"} {
		failed := false
		b.pool.SetFault(func(m string, _ thin.ID) error {
			if m == method && !failed {
				failed = true
				return unix.ENOMEM
			}
			return nil
		})
		fork(errdefs.ErrResourceExhausted)
		require.True(t, failed, method)
	}
	fork(nil, labels(snapshots.LabelSnapshotMaxSize, "4096"))
	require.NoError(t, b.Remove(t.Context(), "fork"))

	token = b.issue(t, "source")
	require.NoError(t, b.Remove(t.Context(), "source"))
	require.NoError(t, b.pool.Write(source, ""), "it still exists")
	_, err = b.Prepare(t.Context(), "fork", "layer", token)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "committed or removed")
	b.prepare(t, "source", "layer")
	_, err = b.Prepare(t.Context(), "fork", "layer", token)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition, "another snapshot of that key")
}

// TestForksAtOnce: concurrent forks of one source with a token each succeed; of those with one token, only
// one does.
func TestForksAtOnce(t *testing.T) {
	b := newBench(t, fakeConfig())
	require.NoError(t, b.pool.Open(b.prepare(t, "source", ""), 1))
	one := b.issue(t, "source")
	var made atomic.Int32
	var all sync.WaitGroup
	for i := range 20 {
		token := b.issue(t, "source")
		all.Go(func() {
			_, err := b.Prepare(t.Context(), fmt.Sprint("fork-", i), "", token)
			noError(t, err)
			if _, err := b.Prepare(t.Context(), fmt.Sprint("rival-", i), "", one); err == nil {
				made.Add(1)
			}
		})
	}
	all.Wait()
	require.EqualValues(t, 1, made.Load())
	closeAll(t, b)
	b.requireNoLeftovers(t)
}

// TestForkCalls: a fork's calls to the kernel.
func TestForkCalls(t *testing.T) {
	b := newBench(t, fakeConfig())
	require.NoError(t, b.pool.Open(b.prepare(t, "source", ""), 1))
	b.prepare(t, "warm up", "", b.issue(t, "source"))
	token, before := b.issue(t, "source"), b.pool.Calls()
	b.prepare(t, "fork", "", token)
	calls := b.pool.Calls()
	for method, n := range map[string]int{
		"Suspend": 1, "CreateSnap": 1, "Resume": 1, "Activate": 1, "SetTransactionID": 1, "Lookup": 1,
		"Flush": 0, "SetReadOnly": 0, "Recover": 0, "Deactivate": 0, "Delete": 0,
	} {
		require.Equal(t, n, calls[method]-before[method], method)
	}
	closeAll(t, b)
}

// TestForkOfWhatIsRemovedMeanwhile: a fork fails if its source is removed before the record is stored.
func TestForkOfWhatIsRemovedMeanwhile(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.prepare(t, "source", "")
	token := b.issue(t, "source")
	b.during("Activate", func() error { return b.Remove(t.Context(), "source") })
	_, err := b.Prepare(t.Context(), "fork", "", token)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "committed or removed")
	b.requireNoLeftovers(t)
}

// TestForkThatCannotBeUndone: the pool takes no stamp, and the store has no space to remove the record. The
// fork exists, so its token is used up.
func TestForkThatCannotBeUndone(t *testing.T) {
	config := fakeConfig()
	config.Spares = 0
	b := newBench(t, config)
	require.NoError(t, b.pool.Write(b.prepare(t, "source", ""), "content"))
	b.prepare(t, "has ids leased", "", b.issue(t, "source"))
	token := b.issue(t, "source")
	var restore func()
	b.during("SetTransactionID", func() error {
		restore = b.fillStore(t)
		return unix.EIO
	})
	_, err := b.Prepare(t.Context(), "fork", "", token)
	require.NotNil(t, restore)
	restore()
	require.ErrorIs(t, err, unix.EIO)
	require.ErrorIs(t, err, unix.ENOSPC)
	require.ErrorContains(t, err, "remove the snapshot")
	_, err = b.Prepare(t.Context(), "another", "", token)
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	require.ErrorContains(t, err, "was used")

	mounts, err := b.Mounts(t.Context(), "fork")
	require.NoError(t, err)
	content, err := b.pool.Read(mounts[0].Source)
	require.NoError(t, err)
	require.Equal(t, "content", content)
	require.NoError(t, b.Remove(t.Context(), "fork"))
	b.requireNoLeftovers(t)
}

// fillStore makes each write to the store fail with ENOSPC until restore is called.
func (b *bench) fillStore(t *testing.T) (restore func()) {
	t.Helper()
	store, err := filepath.EvalSymlinks(b.path)
	require.NoError(t, err)
	all, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	fd := -1
	for _, e := range all {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && to == store {
			fd, err = strconv.Atoi(e.Name())
			require.NoError(t, err)
		}
	}
	require.GreaterOrEqual(t, fd, 0)
	saved, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	require.NoError(t, err)
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	require.NoError(t, err)
	require.NoError(t, unix.Dup3(int(full.Fd()), fd, unix.O_CLOEXEC))
	require.NoError(t, full.Close())
	return func() {
		require.NoError(t, unix.Dup3(saved, fd, unix.O_CLOEXEC))
		require.NoError(t, unix.Close(saved))
	}
}
