package snapshotter

import (
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

// LabelFrom makes a new snapshot a fork of another active one. Its value is a token of IssueFork: with
// a key, an annotation of an image or pod could fork any snapshot. It is not stored, because clients see a
// snapshot's labels.
const LabelFrom = "containerd.io/snapshot/thinsnap/from"

// IssueFork returns a token for one fork of an active snapshot. The token is the value of LabelFrom in a
// Prepare with the same parent and a key in the same namespace, within ForkTokenLife. For a snapshot that
// cannot be forked, IssueFork returns errdefs.ErrFailedPrecondition.
func (s *Snapshotter) IssueFork(ctx context.Context, key string) (token string, err error) {
	rec, err := s.get(ctx, key)
	if err == nil {
		err = requireForkable(rec)
	}
	if err == nil {
		token, err = s.forks.issue(forkGrant{
			key: key, volume: thin.ID(rec.VolumeID), parent: rec.Parent, expires: time.Now().Add(ForkTokenLife),
		})
	}
	if err != nil {
		return "", fmt.Errorf("fork snapshot %q: %w", key, Classify(err))
	}
	return token, nil
}

// requireForkable refuses a snapshot that is not a container's.
func requireForkable(rec metadata.Snapshot) error {
	switch {
	case rec.Kind == snapshots.KindCommitted:
		return fmt.Errorf("it is committed, and does not change: prepare a snapshot with it as the parent: %w",
			errdefs.ErrFailedPrecondition)
	case rec.Kind == snapshots.KindView:
		return fmt.Errorf("it is a View: prepare a snapshot of its parent: %w", errdefs.ErrFailedPrecondition)
	case isUnpack(rec):
		return fmt.Errorf("a layer is being unpacked into it: wait for its Commit, and prepare a snapshot of the layer: %w",
			errdefs.ErrFailedPrecondition)
	}
	return nil
}

// find returns the record of the source, which must still be active and have the same volume.
func (g forkGrant) find(tx *metadata.Tx) (metadata.Snapshot, error) {
	rec, err := tx.Get(g.key)
	// To the caller of Prepare, NotFound would mean the parent of the new snapshot.
	if errdefs.IsNotFound(err) || err == nil && (thin.ID(rec.VolumeID) != g.volume || rec.Kind != snapshots.KindActive) {
		err = fmt.Errorf("snapshot %q was committed or removed: %w", g.key, errdefs.ErrFailedPrecondition)
	}
	return rec, err
}

// fork creates an active snapshot with the present content of another one. from is the result of
// findOrigin. On failure the token can be used again, unless the fork may exist.
func (s *Snapshotter) fork(
	ctx context.Context, key, parent string, from origin, want options,
) (_ []mount.Mount, err error) {
	grant, err := s.forks.use(want.fork, key, parent)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil && !isOneOf(err, metadata.ErrInDoubt, errRecordStays) {
			s.forks.giveBack(want.fork, grant)
		}
	}()
	if err := s.checkPool(ctx); err != nil {
		return nil, err
	}
	source, copied, err := s.copyToFork(ctx, grant)
	if err != nil {
		return nil, fmt.Errorf("fork of snapshot %q: %w", grant.key, err)
	}
	// gofail: var afterForkCopy struct{}
	if want.size.bytes != 0 && !want.size.hint && want.size.bytes != source.Size {
		err := fmt.Errorf("a fork has the size of its source, %d bytes, not %d: %w", source.Size, want.size.bytes,
			errdefs.ErrInvalidArgument)
		s.abandon(copied.ID, err)
		return nil, err
	}
	if parent == "" {
		from.volume = thin.ID(source.Base)
	}
	from.filesystem, from.source = source.Filesystem, &grant
	rec := newRecord(key, parent, from, source.Size, want.labels)
	rec.VolumeID = uint32(copied.ID)
	path, err := s.recordAndActivate(ctx, rec, from, copied.Path)
	if err != nil {
		return nil, err
	}
	return s.mounts(rec, path), nil
}

// copyToFork returns the source of a fork and an active copy of its volume. Nothing is written to the
// source. The first mount of the copy replays its journal.
func (s *Snapshotter) copyToFork(
	ctx context.Context, grant forkGrant,
) (source metadata.Snapshot, _ pool.Volume, err error) {
	unlock, err := s.lockVolumeOf(ctx, func() (_ metadata.Snapshot, err error) {
		err = s.store.View(ctx, func(tx *metadata.Tx) (err error) {
			source, err = grant.find(tx)
			return err
		})
		return source, err
	})
	if err != nil {
		return source, pool.Volume{}, err
	}
	defer unlock()
	s.noteVolume(ctx, grant.volume)
	if err := s.requireNoWritesLost(ctx, grant.volume); err != nil {
		return source, pool.Volume{}, err
	}
	own, err := s.volumes.ensureActiveLocked(ctx, grant.volume, source.Size, false)
	for deadline := time.Now().Add(busyWait); err == nil; own, err = s.pool.Lookup(ctx, grant.volume) {
		copied, err := s.copyUndamaged(ctx, own, source)
		if !errors.Is(err, errUnmounting) || time.Now().After(deadline) {
			return source, copied, err
		}
		select {
		case <-time.After(busyStep):
		case <-ctx.Done():
			return source, pool.Volume{}, context.Cause(ctx)
		}
	}
	return source, pool.Volume{}, err
}

// copyUndamaged is copyVolume for a volume without known damage that can be mounted on the host. It also
// accepts a volume without a file system: a virtual machine can write anything to its disk.
func (s *Snapshotter) copyUndamaged(ctx context.Context, own pool.Volume, rec metadata.Snapshot) (pool.Volume, error) {
	if err := s.requireUndamaged(ctx, own); err != nil {
		return pool.Volume{}, err
	}
	copied, _, err := s.copyVolume(ctx, own, rec)
	if err != nil {
		return pool.Volume{}, err
	}
	if sb, err := s.fs.Identify(copied.Path); err == nil && sb.Mountable() != nil {
		s.abandon(copied.ID, sb.Mountable())
		return pool.Volume{}, explainMount(sb.Mountable())
	}
	return copied, nil
}
