package snapshotter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// statusAge is how old the figures may be by which a new snapshot is refused.
const statusAge = time.Second

// Prepare makes an active snapshot. It is there after any crash once Prepare has
// returned.
//
// A size label that is larger than the parent makes the file system larger; a
// smaller one is errdefs.ErrInvalidArgument. With less of the pool free than the
// operator wants to keep, it is errdefs.ErrResourceExhausted.
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	mounts, err := bounded(ctx, s, func(ctx context.Context) ([]mount.Mount, error) { return s.prepare(ctx, key, parent, opts) })
	if err != nil {
		return nil, fmt.Errorf("prepare snapshot %q: %w", key, s.explained(err))
	}
	return mounts, nil
}

func (s *Snapshotter) prepare(ctx context.Context, key, parent string, opts []snapshots.Opt) ([]mount.Mount, error) {
	want, err := parseOptions(opts)
	if err != nil {
		return nil, err
	}
	origin, err := s.origin(ctx, key, parent)
	if err != nil {
		return nil, err
	}
	if err := s.checkPool(ctx); err != nil {
		return nil, err
	}
	if parent == "" {
		if origin, err = s.emptyOrigin(ctx, want.bytes); err != nil {
			return nil, err
		}
	}
	rec := metadata.Snapshot{
		Key:        key,
		Parent:     parent,
		Kind:       snapshots.KindActive,
		Labels:     want.labels,
		Size:       origin.bytes,
		Filesystem: origin.filesystem,
	}
	if want.bytes != 0 {
		if want.bytes < origin.bytes {
			return nil, fmt.Errorf("a size of %d bytes was asked for, but its parent %q has %d: %w",
				want.bytes, parent, origin.bytes, errdefs.ErrInvalidArgument)
		}
		rec.Size = want.bytes
	}
	path, err := s.child(ctx, origin, rec)
	if err != nil {
		return nil, err
	}
	return s.mounts(rec, path), nil
}

// origin is the volume that a new snapshot begins as.
type origin struct {
	device     thin.ID
	filesystem string
	bytes      uint64
}

// origin returns the parent's volume, having seen that key is free: what fails
// here costs nothing.
func (s *Snapshotter) origin(ctx context.Context, key, parent string) (origin, error) {
	var o origin
	err := s.store.View(ctx, func(tx *metadata.Tx) error {
		if err := metadata.CheckKey(key); err != nil {
			return err
		}
		if tx.Exists(key) {
			return errdefs.ErrAlreadyExists
		}
		if parent == "" {
			return nil
		}
		rec, err := tx.Get(parent)
		if err != nil {
			return fmt.Errorf("parent: %w", err)
		}
		if rec.Kind != snapshots.KindCommitted {
			return fmt.Errorf("parent %q is not committed: %w", parent, errdefs.ErrInvalidArgument)
		}
		o = origin{thin.ID(rec.Device), rec.Filesystem, rec.Size}
		return nil
	})
	return o, err
}

// emptyOrigin returns the base volume for a snapshot without a parent. One that
// is to be smaller than usual needs a base volume of its own.
func (s *Snapshotter) emptyOrigin(ctx context.Context, bytes uint64) (origin, error) {
	key := baseKey{s.config.Filesystem, s.config.BaseBytes}
	if bytes != 0 && bytes < key.bytes {
		key.bytes = bytes
	}
	base, err := s.base(ctx, key)
	return origin{thin.ID(base.Device), base.Filesystem, base.Size}, err
}

// orParentGone returns err, or that the parent does not exist, if it was removed
// after its record was read: its volume may have gone with it.
func (s *Snapshotter) orParentGone(ctx context.Context, parent string, from origin, err error) error {
	gone := s.store.View(ctx, func(tx *metadata.Tx) error { return parentThere(tx, parent, from) })
	if errdefs.IsNotFound(gone) {
		return gone
	}
	return err
}

// parentThere returns errdefs.ErrNotFound if the parent of which a volume was taken
// is no longer there.
func parentThere(tx *metadata.Tx, parent string, from origin) error {
	if parent == "" {
		return nil
	}
	if err := stillThere(tx, parent, from.device); err != nil {
		return fmt.Errorf("parent: %w", err)
	}
	return nil
}

// create puts down the record of a snapshot of a volume.
func (s *Snapshotter) create(ctx context.Context, rec metadata.Snapshot, from origin) error {
	return s.store.Update(ctx, func(tx *metadata.Tx) error {
		if err := parentThere(tx, rec.Parent, from); err != nil {
			return err
		}
		return tx.Create(rec)
	})
}

// checkPool refuses a new snapshot when the pool keeps no changes, or is too full
// for the snapshots that there are.
func (s *Snapshotter) checkPool(ctx context.Context) error {
	status, err := s.pool.RecentStatus(ctx, statusAge)
	if err != nil {
		return err
	}
	if err := unwell(status); err != nil && !errors.Is(err, errFull) {
		return err
	}
	err = cmp.Or(s.enough("data", status.Data), s.enough("metadata", status.Metadata), unwell(status))
	if err != nil {
		s.spares.dropAll()
	}
	return err
}

// enough refuses when less than MinFreePercent is free of what the pool can have:
// its size, or what is left on the disk that its files lie on.
func (s *Snapshotter) enough(what string, space pool.Space) error {
	free := min(space.Total-space.Used, space.Available)
	total := space.Used + free
	if free*100 >= total*s.config.MinFreePercent {
		return nil
	}
	where, remedy := "the pool", "make the pool larger with `thinsnap pool extend`"
	if space.Available < space.Total-space.Used {
		where, remedy = "the disk below the pool", "make room on that disk"
	}
	return fmt.Errorf("%s has %d of %d bytes of %s left, and %d%% are to be kept free: "+
		"remove snapshots, or %s: %w",
		where, free, total, what, s.config.MinFreePercent, remedy, errdefs.ErrResourceExhausted)
}

// View makes a read-only snapshot: the parent's own volume, activated read-only,
// which any number of Views share.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	mounts, err := bounded(ctx, s, func(ctx context.Context) ([]mount.Mount, error) { return s.view(ctx, key, parent, opts) })
	if err != nil {
		return nil, fmt.Errorf("view snapshot %q: %w", key, s.explained(err))
	}
	return mounts, nil
}

func (s *Snapshotter) view(ctx context.Context, key, parent string, opts []snapshots.Opt) (_ []mount.Mount, err error) {
	want, err := parseOptions(opts)
	if err != nil {
		return nil, err
	}
	from, err := s.origin(ctx, key, parent)
	if err != nil {
		return nil, err
	}
	if parent == "" {
		if from, err = s.emptyOrigin(ctx, 0); err != nil {
			return nil, err
		}
	}
	s.working(ctx, from.device)
	unpin := s.volumes.pin(from.device)
	defer func() {
		unpin()
		if err != nil {
			s.reaper.add(from.device, false)
		}
	}()
	// gofail: var beforeActivateView struct{}
	vol, err := s.volumes.use(ctx, from.device, from.bytes, true)
	if err != nil {
		return nil, s.orParentGone(ctx, parent, from, err)
	}
	// gofail: var beforeViewRecord struct{}
	rec := metadata.Snapshot{
		Key:        key,
		Parent:     parent,
		Kind:       snapshots.KindView,
		Labels:     want.labels,
		Created:    now(),
		Device:     uint32(from.device),
		Size:       from.bytes,
		Filesystem: from.filesystem,
	}
	rec.Updated = rec.Created
	if err = s.create(ctx, rec, from); err != nil {
		return nil, err
	}
	// gofail: var afterViewRecord struct{}
	return s.mounts(rec, vol.Path), nil
}
