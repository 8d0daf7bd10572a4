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
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/continuity/fs/fstest"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// host is a snapshotter on a real pool, with what it stands on.
type host struct {
	*snapshotter.Snapshotter
	control *devmapper.Control
	store   *metadata.Store
	root    string
	config  snapshotter.LoopConfig
}

// newHost makes a pool under root and a snapshotter on it.
func newHost(ctx context.Context, root string, config snapshotter.Config) (*host, error) {
	h := &host{root: root, config: snapshotter.LoopConfig{
		Dir:           filepath.Join(root, "pool"),
		Name:          "test-" + strings.ToLower(filepath.Base(filepath.Dir(root))),
		BlockBytes:    64 << 10,
		DataBytes:     4 << 30,
		MetadataBytes: 16 << 20,
	}}
	var err error
	if h.control, err = devmapper.Open(); err != nil {
		return nil, err
	}
	return h, h.open(ctx, config)
}

func (h *host) open(ctx context.Context, config snapshotter.Config) (err error) {
	if h.store, err = metadata.Open(filepath.Join(h.root, "metadata.db"), metadata.Options{LockTimeout: time.Second}); err != nil {
		return err
	}
	p, err := snapshotter.OpenLoopPool(ctx, h.store, h.control, h.config)
	if err != nil {
		return err
	}
	h.Snapshotter, err = snapshotter.New(ctx, config, h.store, p, snapshotter.HostFilesystem{})
	return err
}

// destroy checks the store and takes everything down.
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
	if err := snapshotter.DestroyLoopPool(ctx, store, h.control); err != nil {
		return err
	}
	return h.control.Close()
}

var filesystems = map[string]snapshotter.Config{
	"ext4": {Filesystem: filesystem.Ext4, BaseBytes: 64 << 20, MinFreePercent: 10, Discard: true},
	"xfs":  {Filesystem: filesystem.XFS, BaseBytes: filesystem.MinXFS, MinFreePercent: 10, Discard: true},
}

func TestConformance(t *testing.T) {
	dmtest.RequireKernel(t)
	for name, config := range filesystems {
		t.Run(name, func(t *testing.T) {
			testsuite.SnapshotterSuite(t, "thinsnap-"+name, func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
				h, err := newHost(ctx, root, config)
				if err != nil {
					return nil, nil, err
				}
				return h, func() error { return h.destroy(ctx) }, nil
			})
		})
	}
}

func newTestHost(t *testing.T, config snapshotter.Config) (context.Context, *host) {
	t.Helper()
	dmtest.RequireKernel(t)
	ctx := namespaces.WithNamespace(t.Context(), "test")
	root := filepath.Join(t.TempDir(), "root")
	require.NoError(t, os.MkdirAll(root, 0o700))
	h, err := newHost(ctx, root, config)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, h.destroy(context.WithoutCancel(ctx))) })
	return ctx, h
}

func TestUsage(t *testing.T) {
	for name, config := range filesystems {
		t.Run(name, func(t *testing.T) {
			ctx, h := newTestHost(t, config)
			_, err := h.Prepare(ctx, "empty", "")
			require.NoError(t, err)
			active, err := h.Usage(ctx, "empty")
			require.NoError(t, err)
			require.Positive(t, active.Size, "a file system that was just made has blocks of its own")
			require.NoError(t, h.Commit(ctx, "layer-1", "empty"))
			committed, err := h.Usage(ctx, "layer-1")
			require.NoError(t, err)
			require.Equal(t, active.Size, committed.Size)

			const size = 1 << 20
			mounts, err := h.Prepare(ctx, "file", "layer-1")
			require.NoError(t, err)
			require.NoError(t, mount.WithTempMount(ctx, mounts, fstest.CreateRandomFile("/a", 1, size, 0o777).Apply))
			require.NoError(t, h.Commit(ctx, "layer-2", "file"))
			usage, err := h.Usage(ctx, "layer-2")
			require.NoError(t, err)
			require.GreaterOrEqual(t, usage.Size, int64(size))
			require.EqualValues(t, 1, usage.Inodes)
		})
	}
}
