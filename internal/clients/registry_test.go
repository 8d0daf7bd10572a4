package clients_test

import (
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/internal/clients"
	"github.com/thinsnap/thinsnap/internal/dmtest/fakepool"
	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// bench is a snapshotter on a pool in memory, with a client registry.
type bench struct {
	*clients.Registry
	store *metadata.Store
	space string
	all   *snapshotter.Snapshotter
	inner *snapshotter.KeySpace
	asker atomic.Pointer[asker]
	// listed has the keys in containerd's database.
	listed atomic.Pointer[[]string]
	// tells is true if each process tells its installation at once.
	tells atomic.Bool
}

// An asker returns the installation of a process.
type asker func(ctx context.Context, p clients.Process, proxy string) (string, error)

// knows makes processes tell this installation, with a database that has these keys.
func (b *bench) knows(installation string, keys ...string) {
	b.listed.Store(&keys)
	b.ask(func(context.Context, clients.Process, string) (string, error) { return installation, nil })
	b.tells.Store(true)
}

// ask sets the answers of processes.
func (b *bench) ask(by asker) {
	b.asker.Store(&by)
	b.tells.Store(false)
}

// askNone makes processes tell nothing.
func (b *bench) askNone() {
	b.asker.Store(nil)
	b.tells.Store(false)
}

func newBench(t *testing.T) *bench {
	t.Helper()
	store, err := metadata.Open(filepath.Join(t.TempDir(), "metadata.db"), metadata.Options{})
	require.NoError(t, err)
	require.NoError(t, store.Update(t.Context(), func(tx *metadata.Tx) error {
		return tx.SetPool(metadata.PoolRecord{ID: "fake", Mode: metadata.ModeLoop, Name: "fake", BlockSize: 64 << 10, Complete: true})
	}))
	pool := fakepool.New(4 << 30)
	inner, err := snapshotter.New(t.Context(), snapshotter.Config{Filesystem: filesystem.Ext4, BaseBytes: 64 << 20}, store, pool, pool)
	require.NoError(t, err)
	b := &bench{store: store, space: benchSpace, all: inner, inner: inner.In(benchSpace)}
	b.restart()
	others := b.addOthers(t, inner)
	t.Cleanup(func() {
		others()
		b.Close()
		require.NoError(t, inner.Close())
	})
	return b
}

// restart forgets everything outside the store, as a restart of thinsnap does.
func (b *bench) restart() {
	if b.Registry != nil {
		b.Close()
	}
	b.Registry = clients.New(b.store, b.space)
	clients.SetIdentify(b.Registry, func(ctx context.Context, p clients.Process, proxy string, to clients.Report) error {
		ask := b.asker.Load()
		to.Listens(ask != nil)
		if ask == nil {
			return errors.New("no containerd")
		}
		installation, err := (*ask)(ctx, p, proxy)
		if err == nil {
			err = to.Told(installation)
		}
		if err != nil {
			return err
		}
		if listed := b.listed.Load(); listed != nil {
			for _, key := range *listed {
				if _, err := b.Guard(b.inner).Stat(ctx, key); err != nil && !errdefs.IsNotFound(err) {
					return err
				}
			}
		}
		return nil
	})
}

// containerd is a client with a process.
type containerd struct {
	bench *bench
	cmd   *exec.Cmd
	proxy string
	snapshots.Snapshotter
}

func (b *bench) containerd(t *testing.T) *containerd {
	t.Helper()
	cmd := exec.Command("sleep", "600")
	require.NoError(t, cmd.Start())
	c := &containerd{bench: b, cmd: cmd, proxy: "thinsnap"}
	t.Cleanup(c.end)
	return c
}

// kill ends the process, after its installation is recorded if it tells that at once.
func (c *containerd) kill() {
	for c.bench.tells.Load() && !clients.HasTold(c.bench.Registry, c.cmd.Process.Pid) {
		time.Sleep(time.Millisecond)
	}
	c.end()
}

func (c *containerd) end() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}

func (c *containerd) admit(ctx context.Context) error {
	return c.bench.Admit(ctx, clients.Call{Process: clients.FindProcess(c.cmd.Process.Pid), Proxy: c.proxy})
}

// sn returns the snapshotter, after the client was admitted.
func (c *containerd) sn(t *testing.T) snapshots.Snapshotter {
	t.Helper()
	require.NoError(t, c.admit(t.Context()))
	return c.bench.Guard(c.bench.inner)
}

func (c *containerd) prepare(t *testing.T, key, parent string) {
	t.Helper()
	_, err := c.sn(t).Prepare(t.Context(), key, parent)
	require.NoError(t, err)
}

func (c *containerd) layer(t *testing.T, prepared, name, parent string) {
	t.Helper()
	c.prepare(t, prepared, parent)
	require.NoError(t, c.sn(t).Commit(t.Context(), name, prepared))
}

// requireRefused requires that err refuses a call of the client and has these words.
func requireRefused(t *testing.T, err error, words ...string) {
	t.Helper()
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.NotErrorIs(t, err, errdefs.ErrNotFound)
	for _, word := range words {
		require.ErrorContains(t, err, word)
	}
}

// A second process is refused until the first has ended, also after a restart of thinsnap.
func TestSecondProcessIsRefused(t *testing.T) {
	b := newBench(t)
	first, second := b.containerd(t), b.containerd(t)
	first.prepare(t, "default/1/box", "")
	for range 2 {
		requireRefused(t, second.admit(t.Context()), "is used by process", "/sleep", `"thinsnap"`, "thinsnap client reset")
		require.NoError(t, first.admit(t.Context()))
		b.restart()
	}
	requireRefused(t, second.admit(t.Context()))
	state, err := b.State(t.Context())
	require.NoError(t, err)
	require.True(t, state.Lives)
	require.EqualValues(t, 1, state.Refused)
	require.Contains(t, state.LastRefused, "/sleep")

	first.kill()
	require.NoError(t, second.admit(t.Context()))
	requireRefused(t, b.containerd(t).admit(t.Context()))

	require.NoError(t, b.Reset(t.Context()))
	third := b.containerd(t)
	require.NoError(t, third.admit(t.Context()), "the second cannot be stopped")
	requireRefused(t, second.admit(t.Context()))
}

// Another proxy name is refused while there are snapshots: containerd's collector for that name
// would remove them.
func TestRenamedProxyIsRefused(t *testing.T) {
	b := newBench(t)
	b.knows("one")
	c := b.containerd(t)
	require.NoError(t, c.admit(t.Context()))
	c.proxy = "other"
	require.NoError(t, c.admit(t.Context()), "there is nothing to lose")
	c.prepare(t, "default/1/box", "")
	c.proxy = "thinsnap"
	requireRefused(t, c.admit(t.Context()), `"other"`, `"thinsnap"`, "thinsnap client reset")
	c.kill()
	again := b.containerd(t)
	requireRefused(t, again.admit(t.Context()), "name it")
	require.NoError(t, b.Reset(t.Context()))
	requireRefused(t, again.sn(t).Remove(t.Context(), "default/1/box"), "newer than any snapshot")
}

// A restarted containerd may remove, at once, snapshots that it knows, and ones with lower numbers
// that it dropped before.
func TestRestartedContainerd(t *testing.T) {
	b := newBench(t)
	b.knows("one")
	c := b.containerd(t)
	c.layer(t, "default/1/extract", "default/2/layer", "")
	for _, key := range []string{"default/3/garbage", "default/4/box", "default/5/newest", "other/7/box"} {
		c.prepare(t, key, "")
	}
	c.kill()
	again := b.containerd(t)
	sn := again.sn(t)
	_, err := sn.Stat(t.Context(), "default/4/box")
	require.NoError(t, err)
	require.NoError(t, sn.Remove(t.Context(), "default/3/garbage"))
	require.NoError(t, sn.Remove(t.Context(), "default/4/box"))
	requireRefused(t, sn.Remove(t.Context(), "default/5/newest"), "newer than any snapshot", "thinsnap client accept")
	requireRefused(t, sn.Remove(t.Context(), "other/7/box"), "newer than any snapshot")
	b.restart()
	again.prepare(t, "default/6/next", "")
	sn = again.sn(t)
	require.NoError(t, sn.Remove(t.Context(), "default/5/newest"))
	requireRefused(t, sn.Remove(t.Context(), "other/7/box"))
	require.NoError(t, sn.Remove(t.Context(), "default/6/next"))
	state, err := b.State(t.Context())
	require.NoError(t, err)
	require.Zero(t, state.Kept)
	require.NoError(t, b.Accept(t.Context()))
	require.NoError(t, sn.Remove(t.Context(), "other/7/box"))
}

// A containerd whose data is older than the store creates no snapshot that it could not remove, and
// removes none that is newer than its data.
func TestRestoredContainerd(t *testing.T) {
	b := newBench(t)
	b.knows("one")
	c := b.containerd(t)
	for _, key := range []string{"default/1/old", "default/2/older", "default/3/lost", "default/4/lost", "other/1/lost"} {
		c.prepare(t, key, "")
	}
	c.kill()
	restored := b.containerd(t)
	sn := restored.sn(t)
	_, err := sn.Stat(t.Context(), "default/2/older")
	require.NoError(t, err)
	for _, key := range []string{"default/3/box", "default/4/box", "default/5/box", "other/1/box"} {
		restored.prepare(t, key, "")
	}
	kept := []string{"default/3/lost", "default/4/lost", "other/1/lost"}
	for range 2 {
		for _, key := range kept {
			requireRefused(t, sn.Remove(t.Context(), key), "is kept", "thinsnap client accept")
		}
		b.restart()
		sn = restored.sn(t)
	}
	require.NoError(t, sn.Remove(t.Context(), "default/1/old"), "containerd is known to have had it")
	require.NoError(t, sn.Remove(t.Context(), "default/3/box"))
	state, err := b.State(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 3, state.Kept)

	restored.kill()
	again := b.containerd(t)
	again.prepare(t, "default/9/next", "")
	sn = again.sn(t)
	require.NoError(t, sn.Remove(t.Context(), "default/4/box"), "an ordinary restart")
	for _, key := range kept {
		requireRefused(t, sn.Remove(t.Context(), key), "is kept")
	}
	require.NoError(t, b.Accept(t.Context()))
	b.restart()
	sn = again.sn(t)
	for _, key := range kept {
		require.NoError(t, sn.Remove(t.Context(), key))
	}
}

// A wiped containerd pulls the same image, and gives the same keys. It takes over an existing
// layer. For a key with other content it gets AlreadyExists.
func TestWipedContainerd(t *testing.T) {
	b := newBench(t)
	b.knows("one")
	c := b.containerd(t)
	c.layer(t, "default/1/extract-1-a sha256:1", "default/2/sha256:1", "")
	c.layer(t, "default/3/extract-1-b sha256:2", "default/4/sha256:2", "default/2/sha256:1")
	c.prepare(t, "default/5/box", "default/4/sha256:2")
	c.kill()

	wiped := b.containerd(t)
	requireRefused(t, wiped.sn(t).Remove(t.Context(), "default/5/box"), "newer than any snapshot")
	wiped.layer(t, "default/1/extract-2-a sha256:1", "default/2/sha256:1", "")
	wiped.layer(t, "default/3/extract-2-b sha256:2", "default/4/sha256:2", "default/2/sha256:1")
	_, err := wiped.sn(t).Prepare(t.Context(), "default/5/box", "default/4/sha256:2")
	require.ErrorIs(t, err, errdefs.ErrAlreadyExists)
	require.ErrorContains(t, err, "try again")
	wiped.prepare(t, "default/6/box", "default/4/sha256:2")
	requireRefused(t, wiped.sn(t).Remove(t.Context(), "default/5/box"), "is kept")
	requireRefused(t, wiped.sn(t).Remove(t.Context(), "default/4/sha256:2"), "child")
	require.NoError(t, wiped.sn(t).Remove(t.Context(), "default/6/box"))
	var left []string
	require.NoError(t, b.inner.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
		left = append(left, info.Name)
		return nil
	}))
	require.Equal(t, []string{"default/2/sha256:1", "default/4/sha256:2", "default/5/box"}, left)
}

// Another containerd's numbers may be higher by chance. Removals wait until it has told its
// installation.
func TestOtherInstallation(t *testing.T) {
	b := newBench(t)
	answer := make(chan string)
	var asked atomic.Int32
	b.ask(func(ctx context.Context, _ clients.Process, proxy string) (string, error) {
		asked.Add(1)
		require.Equal(t, "thinsnap", proxy)
		select {
		case installation := <-answer:
			return installation, nil
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	})
	c := b.containerd(t)
	c.prepare(t, "default/1/box", "")
	answer <- "one"
	require.Eventually(t, func() bool {
		state, err := b.State(t.Context())
		return err == nil && state.Installation == "one"
	}, time.Minute, time.Millisecond)
	c.kill()

	c = b.containerd(t)
	c.prepare(t, "default/2/box", "")
	removed := make(chan error, 1)
	sn := c.sn(t)
	go func() { removed <- sn.Remove(t.Context(), "default/1/box") }()
	answer <- "one"
	require.NoError(t, <-removed, "the same containerd")
	c.kill()

	c = b.containerd(t)
	c.prepare(t, "default/50/box", "")
	sn = c.sn(t)
	go func() { removed <- sn.Remove(t.Context(), "default/2/box") }()
	answer <- "two"
	requireRefused(t, <-removed, "is kept")
	require.NoError(t, sn.Remove(t.Context(), "default/50/box"))
	require.EqualValues(t, 3, asked.Load())
}

// Outside the host's PID namespace only the proxy name distinguishes clients. A containerd whose
// data was wiped counts as the one before it, so its collector is not stopped.
func TestUnseenProcess(t *testing.T) {
	b := newBench(t)
	admit := func(proxy string) error {
		return b.Admit(t.Context(), clients.Call{Proxy: proxy})
	}
	require.NoError(t, admit("thinsnap"))
	_, err := b.Guard(b.inner).Prepare(t.Context(), "default/1/box", "")
	require.NoError(t, err)
	require.NoError(t, admit("thinsnap"))
	requireRefused(t, admit("other"))
	state, err := b.State(t.Context())
	require.NoError(t, err)
	require.Zero(t, state.Process.PID)
	require.False(t, state.Since.IsZero())

	b.restart()
	require.NoError(t, admit("thinsnap"))
	wiped := b.Guard(b.inner)
	_, err = wiped.Prepare(t.Context(), "default/1/other", "")
	require.NoError(t, err)
	require.NoError(t, wiped.Remove(t.Context(), "default/1/box"))
}

// A restored containerd lists its snapshots before any are kept from it.
func TestRestoredContainerdTellsWhatItKnows(t *testing.T) {
	b := newBench(t)
	b.knows("one")
	c := b.containerd(t)
	for _, key := range []string{"default/1/lost", "other/1/known", "other/2/lost"} {
		c.prepare(t, key, "")
	}
	c.kill()
	b.ask(func(ctx context.Context, _ clients.Process, _ string) (string, error) {
		_, err := b.Guard(b.inner).Stat(ctx, "other/1/known")
		return "one", err
	})
	c = b.containerd(t)
	c.prepare(t, "default/1/box", "")
	sn := c.sn(t)
	require.NoError(t, sn.Remove(t.Context(), "other/1/known"))
	for _, key := range []string{"default/1/lost", "other/2/lost"} {
		requireRefused(t, sn.Remove(t.Context(), key), "is kept")
	}
}
