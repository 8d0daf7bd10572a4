package clients_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
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

// several is a thinsnap whose clients get other addresses.
type several struct {
	store *metadata.Store
	inner *snapshotter.Snapshotter
	all   []*installation

	mu     sync.Mutex
	served map[int]*clients.Registry // by address
	spaces map[int]string
}

// installation is a containerd or another program, with its data. The other program tells no UUID.
type installation struct {
	id      string
	silent  bool
	address int
	cmd     *exec.Cmd

	mu     sync.Mutex
	given  int               // the last number
	stays  string            // a key that it never drops
	has    map[string]string // key spaces of its snapshots, by key
	parent map[string]string
}

// configure starts thinsnap with these key spaces at the addresses.
func (s *several) configure(spaces map[int]string) {
	s.close()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spaces, s.served = spaces, make(map[int]*clients.Registry)
	for address, space := range spaces {
		r := clients.New(s.store, space)
		clients.SetIdentify(r, s.identify)
		clients.SetWait(r, time.Millisecond)
		s.served[address] = r
	}
}

// identified waits until each containerd has told its installation at its address.
func (s *several) identified(t *testing.T) {
	t.Helper()
	for _, i := range s.all {
		require.Eventually(t, func() bool {
			state, err := s.served[i.address].State(t.Context())
			require.NoError(t, err)
			return i.silent || state.Process.PID == i.pid() && state.Installation == i.id
		}, time.Minute, time.Millisecond)
	}
}

func (s *several) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.served {
		r.Close()
	}
}

func (s *several) identify(ctx context.Context, p clients.Process, _ string, to clients.Report) error {
	i := slices.IndexFunc(s.all, func(i *installation) bool { return i.pid() == p.PID && !i.silent })
	to.Listens(i >= 0)
	time.Sleep(time.Duration(rand.IntN(4)) * time.Millisecond)
	if i < 0 {
		return errors.New("no containerd")
	}
	if err := to.Told(s.all[i].id); err != nil {
		return err
	}
	for _, key := range s.all[i].keys() {
		if err := s.call(ctx, s.all[i], func(sn snapshots.Snapshotter) error {
			_, err := sn.Stat(ctx, key)
			return err
		}); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	return nil
}

// call makes a call as an installation, at its address.
func (s *several) call(ctx context.Context, i *installation, do func(snapshots.Snapshotter) error) error {
	s.mu.Lock()
	r, space := s.served[i.address], s.spaces[i.address]
	s.mu.Unlock()
	pid := i.pid()
	if r == nil || pid < 0 {
		return errdefs.ErrUnavailable
	}
	if err := r.Admit(ctx, clients.Call{Process: clients.FindProcess(pid), Proxy: "thinsnap"}); err != nil {
		return err
	}
	return do(r.Guard(s.inner.In(space)))
}

func (i *installation) pid() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.cmd == nil {
		return -1
	}
	return i.cmd.Process.Pid
}

func (i *installation) keys() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Sorted(maps.Keys(i.has))
}

func (i *installation) start(t *testing.T) {
	t.Helper()
	cmd := exec.Command("sleep", "600")
	require.NoError(t, cmd.Start())
	i.mu.Lock()
	defer i.mu.Unlock()
	i.cmd = cmd
}

func (i *installation) stop() {
	i.mu.Lock()
	cmd := i.cmd
	i.cmd = nil
	i.mu.Unlock()
	if cmd != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

// next returns a key with the next number. The keys of layers are the same for all installations.
func (i *installation) next(isLayer bool) string {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.given++
	if isLayer {
		return fmt.Sprintf("default/%d/sha256:%d", i.given, i.given)
	}
	return fmt.Sprintf("default/%d/%s", i.given, i.id)
}

func (i *installation) set(key, parent, space string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.has[key], i.parent[key] = space, parent
}

func (i *installation) forget(key string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.has, key)
	delete(i.parent, key)
}

// work creates a layer or a container in the current key space.
func (s *several) work(ctx context.Context, i *installation) {
	parent, space := "", s.spaces[i.address]
	for _, key := range i.keys() {
		if i.has[key] == space && rand.IntN(2) == 0 {
			parent = key
		}
	}
	_ = s.call(ctx, i, func(sn snapshots.Snapshotter) error {
		if info, err := sn.Stat(ctx, parent); err != nil || info.Kind != snapshots.KindCommitted {
			parent = ""
		}
		key := i.next(false)
		if _, err := sn.Prepare(ctx, key, parent); err != nil {
			return err
		}
		i.set(key, parent, space)
		if rand.IntN(2) == 0 {
			return nil
		}
		name := i.next(true)
		if err := sn.Commit(ctx, name, key); err != nil {
			return err
		}
		i.forget(key)
		i.set(name, parent, space)
		return nil
	})
}

// drop removes a snapshot without children from the database.
func (i *installation) drop() {
	for _, key := range i.keys() {
		if rand.IntN(5) == 0 && key != i.stays && !slices.Contains(slices.Collect(maps.Values(i.parent)), key) {
			i.forget(key)
		}
	}
}

// collect works like containerd's collector: it removes all listed snapshots that the database lacks, children first.
func (s *several) collect(ctx context.Context, i *installation) (removed int) {
	_ = s.call(ctx, i, func(sn snapshots.Snapshotter) error {
		var unknown []string
		_ = sn.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
			if !slices.Contains(i.keys(), info.Name) {
				unknown = append(unknown, info.Name)
			}
			return nil
		})
		for range unknown {
			for _, key := range unknown {
				if sn.Remove(ctx, key) == nil {
					removed++
				}
			}
		}
		return nil
	})
	return removed
}

// requireAll requires that all snapshots of the installations exist.
func (s *several) requireAll(t *testing.T, what string) {
	t.Helper()
	require.NoError(t, s.store.View(context.Background(), func(tx *metadata.Tx) error {
		for _, i := range s.all {
			for key, space := range i.has {
				require.True(t, tx.Exists(metadata.KeyPrefix(space)+key), "%s: %s lost %q of %q", what, i.id, key, space)
			}
		}
		return nil
	}))
}

// The configuration changes and processes restart at random moments, and other containerds and programs use a client's
// address, with the same keys for layers. No client loses a snapshot.
func TestReconfiguredClients(t *testing.T) {
	for range 3 {
		reconfigured(t)
	}
}

func reconfigured(t *testing.T) {
	t.Helper()
	store, err := metadata.Open(filepath.Join(t.TempDir(), "metadata.db"), metadata.Options{})
	require.NoError(t, err)
	require.NoError(t, store.Update(t.Context(), func(tx *metadata.Tx) error {
		return tx.SetPool(metadata.PoolRecord{ID: "fake", Mode: metadata.ModeLoop, Name: "fake", BlockSize: 64 << 10, Complete: true})
	}))
	pool := fakepool.New(4 << 30)
	inner, err := snapshotter.New(t.Context(), snapshotter.Config{Filesystem: filesystem.Ext4, BaseBytes: 64 << 20}, store, pool, pool)
	require.NoError(t, err)
	s := &several{store: store, inner: inner}
	defer func() { require.NoError(t, inner.Close()) }()
	defer s.close()
	names := []string{"", "k3s", "k3s-2", "k3s-3", "new"}
	home := map[int]string{0: "", 1: "k3s", 2: "k3s-2", 3: "k3s-3"}
	for address := range home {
		i := &installation{
			id: fmt.Sprintf("uuid%d", address), silent: address > 1, address: address,
			has: make(map[string]string), parent: make(map[string]string),
		}
		i.start(t)
		defer i.stop()
		s.all = append(s.all, i)
	}
	s.configure(home)
	for _, i := range s.all {
		for len(i.has) == 0 {
			s.work(t.Context(), i)
		}
		i.stays = i.keys()[0]
	}
	s.identified(t)
	removed := 0
	for range 200 {
		i := s.all[rand.IntN(len(s.all))]
		var what string
		switch n := rand.IntN(20); {
		case n < 9:
			what = "work"
			s.work(t.Context(), i)
		case n < 12:
			what = "drop"
			i.drop()
		case n < 16:
			what = "collect of " + i.id
			removed += s.collect(t.Context(), i)
		case n < 17:
			what = "start of " + i.id
			i.stop()
			i.start(t)
		case n < 18:
			what = "start of thinsnap"
			s.configure(s.spaces)
		default:
			order := rand.Perm(len(names))
			spaces := maps.Clone(home)
			if rand.IntN(2) == 0 {
				for address := range spaces {
					spaces[address] = names[order[address]]
				}
			}
			if rand.IntN(3) == 0 {
				delete(spaces, 1+rand.IntN(3))
			}
			what = fmt.Sprint("configuration", spaces)
			for _, other := range s.all { // sometimes their processes end first
				if rand.IntN(2) == 0 {
					other.stop()
				}
			}
			s.configure(spaces)
			for _, other := range s.all {
				if other.pid() < 0 {
					other.start(t)
				}
			}
		}
		s.requireAll(t, what)
	}
	t.Logf("%d removed", removed)
	problems, err := store.Check(t.Context())
	require.NoError(t, err)
	require.Empty(t, problems)
}
