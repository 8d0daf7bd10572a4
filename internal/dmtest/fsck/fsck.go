// Package fsck checks the file systems of committed snapshots for tests, with e2fsck -fn or
// xfs_repair -n, and with a mount that must not need a replay. It repairs nothing.
package fsck

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/provision"
	"github.com/thinsnap/thinsnap/metadata"
)

// lockTimeout limits the wait for a store that a daemon is about to close.
const lockTimeout = 5 * time.Second

// Device checks the file system of type typ on a device.
func Device(ctx context.Context, dev, typ string) error {
	checker := []string{"e2fsck", "-fn", dev}
	if typ == filesystem.XFS {
		checker = []string{"xfs_repair", "-n", dev}
	}
	if out, err := exec.CommandContext(ctx, checker[0], checker[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w: %s", checker, err, out)
	}
	return filesystem.Verify(dev, typ)
}

// Layer checks a committed snapshot of a pool.
func Layer(ctx context.Context, p *pool.Pool, rec metadata.Snapshot) error {
	id := thin.ID(rec.VolumeID)
	vol, err := p.Lookup(ctx, id)
	if err == nil && !vol.ReadOnly && vol.OpenCount == 0 {
		// The snapshotter would have deactivated it in the background.
		if err := p.Deactivate(ctx, id); err != nil {
			return err
		}
		err = devmapper.ErrNotFound
	}
	if errors.Is(err, devmapper.ErrNotFound) {
		if vol, err = p.Activate(ctx, id, rec.Size, true); err == nil {
			defer func() { _ = p.Deactivate(ctx, id) }()
		}
	}
	if err == nil {
		err = Device(ctx, vol.Path, rec.Filesystem)
	}
	if err != nil {
		return fmt.Errorf("committed snapshot %q: %w", rec.Key, err)
	}
	return nil
}

// maxChecked limits the checked snapshots of a store, unless dmtest.Thorough.
const maxChecked = 24

// Store checks the committed snapshots of a store, or a sample if it has many. The pool must be
// readable.
func Store(ctx context.Context, store *metadata.Store, p *pool.Pool) error {
	var layers []metadata.Snapshot
	if err := store.View(ctx, func(tx *metadata.Tx) error {
		return tx.ForEach(func(rec metadata.Snapshot) error {
			if rec.Kind == snapshots.KindCommitted {
				layers = append(layers, rec)
			}
			return nil
		})
	}); err != nil {
		return err
	}
	step := 1
	if !dmtest.Thorough() {
		step = 1 + len(layers)/maxChecked
	}
	for i := 0; i < len(layers); i += step {
		if err := Layer(ctx, p, layers[i]); err != nil {
			return err
		}
	}
	return nil
}

// Root calls Store for a root without a running daemon. It fails with devmapper.ErrNotFound if the
// pool is not in the kernel.
func Root(ctx context.Context, root string) (err error) {
	store, err := metadata.Open(filepath.Join(root, "metadata.db"), metadata.Options{LockTimeout: lockTimeout})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	control, err := devmapper.Open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, control.Close()) }()
	stored, err := provision.Read(ctx, store)
	if err != nil {
		return err
	}
	p, err := stored.OpenLoaded(control)
	if err != nil {
		return err
	}
	return Store(ctx, store, p)
}

// view is the prefix of the keys of Served's Views.
const view = "fsck of "

// Served checks every committed snapshot of a running snapshotter, except for the given ones,
// through a View of each.
func Served(ctx context.Context, sn snapshots.Snapshotter, except ...string) error {
	var layers []string
	if err := sn.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindCommitted && !slices.Contains(except, info.Name) {
			layers = append(layers, info.Name)
		}
		return nil
	}); err != nil {
		return err
	}
	for _, name := range layers {
		if err := servedLayer(ctx, sn, name); err != nil {
			return fmt.Errorf("committed snapshot %q: %w", name, err)
		}
	}
	return nil
}

func servedLayer(ctx context.Context, sn snapshots.Snapshotter, name string) error {
	// The label protects it from containerd's garbage collector.
	mounts, err := sn.View(ctx, view+name, name, snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "fsck"}))
	if err != nil {
		return err
	}
	return errors.Join(Device(ctx, mounts[0].Source, mounts[0].Type), sn.Remove(ctx, view+name))
}
