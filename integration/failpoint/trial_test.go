package failpoint

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/internal/dmtest/fsck"
)

// callLimit bounds each call: no call may hang after a crash.
const callLimit = 30 * time.Second

const (
	// sparesDelay is longer than the daemon waits before it makes spares.
	sparesDelay = 400 * time.Millisecond
	// layer is a committed snapshot that exists in every trial and does not change.
	layer = "layer"
	// first is the key that layer had before its Commit; the file in it has the same name.
	first = "first"
)

// trial is one run of an operation, with keys of its own.
type trial struct {
	*testing.T
	*stand
	sn      snapshots.Snapshotter
	number  int
	mounted []string // mount points
	opened  []*os.File
	lost    mapped   // device of a snapshot that the store lacks
	env     []string // of a program that the operation starts
}

func newTrial(t *testing.T, s *stand, number int) *trial {
	t.Helper()
	r := &trial{T: t, stand: s, number: number}
	r.connect()
	t.Cleanup(func() {
		if t.Failed() {
			// A device that a crash left suspended could not be unmounted.
			r.revive()
		}
		r.unmount()
		r.closeAll()
	})
	return r
}

// connect makes a new client: the old client of a crashed daemon would wait before it connects again.
func (r *trial) connect() {
	if len(r.Clients) > 0 {
		r.sn = r.SnapshotterOf(r.T, r.Clients[0])
		return
	}
	r.sn = r.Snapshotter(r.T)
}

// asDefault calls do as the default client.
func (r *trial) asDefault(do func(r *trial)) {
	r.Helper()
	other := *r
	other.sn, other.mounted = r.Snapshotter(r.T), nil
	do(&other)
	other.unmount()
}

func (r *trial) key(name string) string { return fmt.Sprintf("%s-%d", name, r.number) }

// call calls the snapshotter with a limit.
func (r *trial) call(f func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), "test"), callLimit)
	defer cancel()
	return f(ctx)
}

// must is like call, and fails the test on an error.
func (r *trial) must(f func(ctx context.Context) error) {
	r.Helper()
	require.NoError(r, r.call(f))
}

// unless drops an error that reports that the work was already done.
func unless(done func(error) bool, err error) error {
	if done(err) {
		return nil
	}
	return err
}

func (r *trial) prepare(key, parent string, opts ...snapshots.Opt) error {
	return r.call(func(ctx context.Context) error {
		_, err := r.sn.Prepare(ctx, key, parent, opts...)
		return unless(errdefs.IsAlreadyExists, err)
	})
}

func (r *trial) view(key, parent string) error {
	return r.call(func(ctx context.Context) error {
		_, err := r.sn.View(ctx, key, parent)
		return unless(errdefs.IsAlreadyExists, err)
	})
}

// commit commits like containerd: a name that exists already is no error.
func (r *trial) commit(name, key string) error {
	return r.call(func(ctx context.Context) error {
		return unless(errdefs.IsAlreadyExists, r.sn.Commit(ctx, name, key))
	})
}

func (r *trial) remove(key string) error {
	return r.call(func(ctx context.Context) error {
		return unless(errdefs.IsNotFound, r.sn.Remove(ctx, key))
	})
}

func (r *trial) mounts(key string) (mounts []mount.Mount, err error) {
	err = r.call(func(ctx context.Context) error {
		mounts, err = r.sn.Mounts(ctx, key)
		return err
	})
	return mounts, err
}

// cleanup waits for the daemon's background work.
func (r *trial) cleanup() error {
	cleaner, ok := r.sn.(snapshots.Cleaner)
	require.True(r, ok)
	return r.call(cleaner.Cleanup)
}

// awaitIdle waits until the daemon has no pending background work.
func (r *trial) awaitIdle() {
	r.Helper()
	if r.spares {
		// Spares are made when no snapshot has been requested for a moment.
		time.Sleep(sparesDelay)
	}
	require.NoError(r, r.cleanup())
}

// mount mounts a snapshot until the end of the trial.
func (r *trial) mount(key string) string {
	r.Helper()
	mounts, err := r.mounts(key)
	require.NoError(r, err)
	dir := r.TempDir()
	require.NoError(r, mount.All(mounts, dir))
	r.mounted = append(r.mounted, dir)
	return dir
}

func (r *trial) unmount() {
	r.Helper()
	for len(r.mounted) > 0 {
		last := len(r.mounted) - 1
		// UnmountAll retries while the mount is busy: a program that is just being started holds all open files.
		require.NoError(r, mount.UnmountAll(r.mounted[last], 0))
		r.mounted = r.mounted[:last]
	}
}

// open opens the device of a snapshot until the end of the trial, like a virtual machine.
func (r *trial) open(key string) {
	r.Helper()
	mounts, err := r.mounts(key)
	require.NoError(r, err)
	f, err := os.OpenFile(mounts[0].Source, os.O_RDWR, 0)
	require.NoError(r, err)
	r.opened = append(r.opened, f)
}

func (r *trial) closeAll() {
	r.Helper()
	for _, f := range r.opened {
		require.NoError(r, f.Close())
	}
	r.opened = nil
}

func content(key string) []byte {
	var seed [32]byte
	copy(seed[:], key)
	b := make([]byte, 100_000)
	_, _ = rand.NewChaCha8(seed).Read(b)
	return b
}

// write writes the file of a key into an active snapshot.
func (r *trial) write(key string) {
	r.Helper()
	dir := r.mount(key)
	require.NoError(r, os.WriteFile(filepath.Join(dir, fileOf(key)), content(key), 0o600))
	r.unmount()
}

// fileOf returns the file name for a key, which may have slashes.
func fileOf(key string) string { return strings.ReplaceAll(key, "/", "_") }

// requireFiles requires that an active snapshot or a View has the files of these keys.
func (r *trial) requireFiles(key string, files ...string) {
	r.Helper()
	r.requireDirFiles(r.mount(key), files...)
}

// requireDeviceFiles is requireFiles for a device that no snapshot of the daemon uses.
func (r *trial) requireDeviceFiles(path string, files ...string) {
	r.Helper()
	dir := r.TempDir()
	require.NoError(r, mount.All([]mount.Mount{{Type: "ext4", Source: path, Options: []string{"ro"}}}, dir))
	r.mounted = append(r.mounted, dir)
	r.requireDirFiles(dir, files...)
}

// requireDirFiles is requireFiles for a mount, which it unmounts.
func (r *trial) requireDirFiles(dir string, files ...string) {
	r.Helper()
	for _, file := range files {
		got, err := os.ReadFile(filepath.Join(dir, fileOf(file)))
		require.NoError(r, err)
		require.True(r, bytes.Equal(content(file), got), "the file of %s has another content", file)
	}
	r.unmount()
}

// requireLayerFiles is requireFiles for a committed snapshot.
func (r *trial) requireLayerFiles(key string, files ...string) {
	r.Helper()
	view := key + "-seen-" + r.key("")
	r.must(func(ctx context.Context) error { _, err := r.sn.View(ctx, view, key); return err })
	r.requireFiles(view, files...)
	require.NoError(r, r.remove(view))
}

func (r *trial) stat(key string) (info snapshots.Info, err error) {
	err = r.call(func(ctx context.Context) error { info, err = r.sn.Stat(ctx, key); return err })
	return info, err
}

func (r *trial) requireKind(key string, kind snapshots.Kind) {
	r.Helper()
	info, err := r.stat(key)
	require.NoError(r, err)
	require.Equal(r, kind, info.Kind)
}

func (r *trial) requireGone(key string) {
	r.Helper()
	_, err := r.stat(key)
	require.ErrorIs(r, err, errdefs.ErrNotFound)
}

func (r *trial) keys() (keys []string) {
	r.Helper()
	r.must(func(ctx context.Context) error {
		keys = nil
		return r.sn.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
			keys = append(keys, info.Name)
			return nil
		})
	})
	return keys
}

// removeAll checks and removes every snapshot except layer. It also removes the daemon's leftovers.
func (r *trial) removeAll() {
	r.Helper()
	r.unmount()
	r.closeAll()
	r.must(func(ctx context.Context) error { return fsck.Served(ctx, r.sn, layer) })
	require.NoError(r, r.removeLeftovers())
	left := func() []string {
		return slices.DeleteFunc(r.keys(), func(key string) bool { return key == layer })
	}
	for keys := left(); len(keys) > 0; keys = left() {
		removed := 0
		for _, key := range keys {
			// Snapshots with children wait for the next round.
			if r.remove(key) == nil {
				removed++
			}
		}
		require.Positive(r, removed, "none of %v can be removed", keys)
	}
	require.NoError(r, r.cleanup())
}

// mapped is an earlier state of a mapped device.
type mapped struct {
	device  devmapper.Device
	targets []devmapper.Target
}

func (r *trial) deviceOf(key string) mapped {
	r.Helper()
	mounts, err := r.mounts(key)
	require.NoError(r, err)
	var m mapped
	r.control(func(c *devmapper.Control) (err error) {
		if m.device, err = c.Info(filepath.Base(mounts[0].Source)); err == nil {
			_, m.targets, err = c.Table(m.device.Name)
		}
		return err
	})
	return m
}

// control changes the kernel's devices without the daemon's knowledge.
func (r *trial) control(f func(*devmapper.Control) error) {
	r.Helper()
	control, err := devmapper.Open()
	require.NoError(r, err)
	require.NoError(r, f(control))
	require.NoError(r, control.Close())
}

// rebooted deactivates a volume without the daemon's knowledge, as a restart of the machine does.
func (r *trial) rebooted(key string) {
	r.Helper()
	device := r.deviceOf(key).device
	r.control(func(c *devmapper.Control) error { return c.Deactivate(device.Name) })
}
