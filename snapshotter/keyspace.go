package snapshotter

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/metadata"
)

// In returns the snapshots of one key space, by the keys of its client; "" is the default client's. No call
// sees or changes a snapshot of another key space, but Cleanup deletes all removed volumes. Close does
// nothing. The Snapshotter itself has all snapshots, by their stored keys.
func (s *Snapshotter) In(space string) *KeySpace { return &KeySpace{all: s, space: space} }

// A KeySpace implements snapshots.Snapshotter and snapshots.Cleaner for one client.
type KeySpace struct {
	all   *Snapshotter
	space string
}

var (
	_ snapshots.Snapshotter = (*KeySpace)(nil)
	_ snapshots.Cleaner     = (*KeySpace)(nil)
)

// join returns the stored key of a client's key.
func (k *KeySpace) join(key string) (string, error) { return metadata.JoinKey(k.space, key) }

// joinParent is join for the key of a parent, which may be empty.
func (k *KeySpace) joinParent(key string) (string, error) {
	if key == "" {
		return "", nil
	}
	return k.join(key)
}

// clientInfo returns info with the client's keys.
func (k *KeySpace) clientInfo(info snapshots.Info) snapshots.Info {
	_, info.Name = metadata.SplitKey(info.Name)
	_, info.Parent = metadata.SplitKey(info.Parent)
	return info
}

// clientError returns an error with the client's keys in its text.
func (k *KeySpace) clientError(err error) error {
	if err == nil {
		return nil
	}
	if text := metadata.OwnText(k.space, err.Error()); text != err.Error() {
		return &textError{text, err}
	}
	return err
}

// textError is an error with another text.
type textError struct {
	text string
	error
}

func (e *textError) Error() string { return e.text }

// Unwrap returns the error.
func (e *textError) Unwrap() error { return e.error }

// Stat implements snapshots.Snapshotter, as the following methods do.
func (k *KeySpace) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	stored, err := k.join(key)
	if err != nil {
		return snapshots.Info{}, fmt.Errorf("stat snapshot %q: %w", key, err)
	}
	info, err := k.all.Stat(ctx, stored)
	return k.clientInfo(info), k.clientError(err)
}

// Update changes labels.
func (k *KeySpace) Update(ctx context.Context, want snapshots.Info, fieldpaths ...string) (snapshots.Info, error) {
	stored, err := k.join(want.Name)
	if err != nil {
		return snapshots.Info{}, fmt.Errorf("update snapshot %q: %w", want.Name, err)
	}
	want.Name = stored
	info, err := k.all.Update(ctx, want, fieldpaths...)
	return k.clientInfo(info), k.clientError(err)
}

// Usage returns the space of a snapshot.
func (k *KeySpace) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	stored, err := k.join(key)
	if err != nil {
		return snapshots.Usage{}, fmt.Errorf("usage of snapshot %q: %w", key, err)
	}
	usage, err := k.all.Usage(ctx, stored)
	return usage, k.clientError(err)
}

// Mounts returns the mounts of a snapshot.
func (k *KeySpace) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	stored, err := k.join(key)
	if err != nil {
		return nil, fmt.Errorf("mounts of snapshot %q: %w", key, err)
	}
	mounts, err := k.all.Mounts(ctx, stored)
	return mounts, k.clientError(err)
}

// Prepare creates an active snapshot.
func (k *KeySpace) Prepare(
	ctx context.Context, key, parent string, opts ...snapshots.Opt,
) ([]mount.Mount, error) {
	return k.create(ctx, k.all.Prepare, key, parent, opts)
}

// View creates a View.
func (k *KeySpace) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return k.create(ctx, k.all.View, key, parent, opts)
}

func (k *KeySpace) create(
	ctx context.Context, create func(context.Context, string, string, ...snapshots.Opt) ([]mount.Mount, error),
	key, parent string, opts []snapshots.Opt,
) ([]mount.Mount, error) {
	stored, err := k.join(key)
	if err != nil {
		return nil, fmt.Errorf("create snapshot %q: %w", key, err)
	}
	storedParent, err := k.joinParent(parent)
	if err != nil {
		return nil, fmt.Errorf("create snapshot %q: its parent: %w", key, err)
	}
	mounts, err := create(ctx, stored, storedParent, opts...)
	return mounts, k.clientError(err)
}

// Commit makes an active snapshot a committed one.
func (k *KeySpace) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	storedName, err := k.join(name)
	if err != nil {
		return fmt.Errorf("commit snapshot %q as %q: %w", key, name, err)
	}
	stored, err := k.join(key)
	if err != nil {
		return fmt.Errorf("commit snapshot %q as %q: %w", key, name, err)
	}
	return k.clientError(k.all.Commit(ctx, storedName, stored, opts...))
}

// Remove removes a snapshot.
func (k *KeySpace) Remove(ctx context.Context, key string) error {
	stored, err := k.join(key)
	if err != nil {
		return fmt.Errorf("remove snapshot %q: %w", key, err)
	}
	return k.clientError(k.all.Remove(ctx, stored))
}

// Walk calls fn for the snapshots of the key space, as Snapshotter.Walk does for all. It reads no other
// records.
func (k *KeySpace) Walk(ctx context.Context, fn snapshots.WalkFunc, fs ...string) error {
	filter, err := filters.ParseAll(fs...)
	if err != nil {
		return fmt.Errorf("walk snapshots: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	limit := metadata.Page{Records: walkPage, Bytes: walkBytes, Space: &k.space}
	return k.clientError(k.all.walk(ctx, limit, func(rec metadata.Snapshot) error {
		_, rec.Key = metadata.SplitKey(rec.Key)
		_, rec.Parent = metadata.SplitKey(rec.Parent)
		if !filter.Match(adapt(rec)) {
			return nil
		}
		return fn(ctx, info(rec))
	}))
}

// Cleanup implements snapshots.Cleaner.
func (k *KeySpace) Cleanup(ctx context.Context) error { return k.clientError(k.all.Cleanup(ctx)) }

// Close implements snapshots.Snapshotter.
func (*KeySpace) Close() error { return nil }
