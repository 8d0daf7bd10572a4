package snapshotter_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/dmtest/fsck"
	"github.com/thinsnap/thinsnap/internal/provision"
	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter"
)

type host struct {
	*snapshotter.Snapshotter
	control *devmapper.Control
	store   *metadata.Store
	pool    *pool.Pool
	root    string
	config  config.Config
	// wrap, if not nil, wraps the pool for the snapshotter.
	wrap func(snapshotter.Pool) snapshotter.Pool
}

// newHost makes a pool under root and a snapshotter on it.
func newHost(ctx context.Context, root string, policy snapshotter.Config) (*host, error) {
	name := "test-" + strings.ToLower(filepath.Base(filepath.Dir(root)))
	h := &host{root: root, config: poolConfig(root, name, 4<<30, 16<<20)}
	var err error
	if h.control, err = devmapper.Open(); err != nil {
		return nil, err
	}
	return h, h.open(ctx, policy)
}

// poolConfig describes a loop pool that does not grow.
func poolConfig(root, name string, dataBytes, metadataBytes uint64) config.Config {
	c := config.Default()
	c.Root, c.Pool.Name, c.Pool.AutoextendThreshold = root, name, 100
	c.Pool.Loop = config.PoolLoop{DataSize: config.Size(dataBytes), MetadataSize: config.Size(metadataBytes)}
	return c
}

func (h *host) open(ctx context.Context, config snapshotter.Config) (err error) {
	if h.store, err = metadata.Open(filepath.Join(h.root, "metadata.db"), metadata.Options{LockTimeout: time.Second}); err != nil {
		return err
	}
	if h.pool, err = provision.Open(ctx, h.store, h.control, h.config); err != nil {
		return err
	}
	config.MountDir = filepath.Join(h.root, "mounts")
	var p snapshotter.Pool = h.pool
	if h.wrap != nil {
		p = h.wrap(p)
	}
	sn, err := snapshotter.New(ctx, config, h.store, p, filesystem.Host{})
	if err == nil {
		h.Snapshotter = sn
	}
	return err
}

// destroy checks the store and every committed layer, and removes everything.
func (h *host) destroy(ctx context.Context) error {
	if err := h.Close(); err != nil {
		return err
	}
	store, err := metadata.Open(filepath.Join(h.root, "metadata.db"), metadata.Options{LockTimeout: time.Second})
	if err != nil {
		return err
	}
	defer store.Close()
	problems, err := store.Check(ctx)
	if err != nil {
		return err
	}
	for _, p := range problems {
		return errors.New(p.String())
	}
	if err := fsck.Store(ctx, store, h.pool); err != nil {
		return err
	}
	if err := provision.Destroy(ctx, store, h.control); err != nil {
		return err
	}
	return h.control.Close()
}

var filesystems = map[string]snapshotter.Config{
	"ext4": {Filesystem: filesystem.Ext4, BaseBytes: 64 << 20, MinFreePercent: 10, Discard: true},
	"xfs":  {Filesystem: filesystem.XFS, BaseBytes: filesystem.MinXFS, MinFreePercent: 10, Discard: true},
}

func newTestHost(t *testing.T, config snapshotter.Config) (context.Context, *host) {
	t.Helper()
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	ctx := namespaces.WithNamespace(t.Context(), "test")
	root := filepath.Join(t.TempDir(), "root")
	require.NoError(t, os.MkdirAll(root, 0o700))
	h, err := newHost(ctx, root, config)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, h.destroy(context.WithoutCancel(ctx))) })
	return ctx, h
}

// reboot removes the pool from the kernel, and opens everything again.
func (h *host) reboot(ctx context.Context, config snapshotter.Config) error {
	if err := h.Close(); err != nil {
		return err
	}
	if err := h.pool.Close(ctx); err != nil {
		return err
	}
	return h.open(ctx, config)
}

// restart ends the snapshotter and opens the store and the pool again, as a restart of thinsnap does.
func (h *host) restart(ctx context.Context, config snapshotter.Config) error {
	if err := h.Close(); err != nil {
		return err
	}
	return h.open(ctx, config)
}

// mounted calls f with a directory that has the mounts.
func mounted(t *testing.T, mounts []mount.Mount, f func(dir string)) {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, mount.All(mounts, dir))
	defer func() { require.NoError(t, mount.UnmountAll(dir, 0)) }()
	f(dir)
}

func read(t *testing.T, dir, name string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(dir, name))
	require.NoError(t, err)
	return string(content)
}

func write(t *testing.T, dir, name, content string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644))
}
