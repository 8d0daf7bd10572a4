package snapshotter

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// Prepare creates an active snapshot. Once Prepare has returned, the snapshot survives any crash.
//
// A LabelSize above the parent's size grows the file system, up to Config.MaxBytes; one below the
// parent's is refused with errdefs.ErrInvalidArgument. With less free space in the pool than
// Config.MinFreePercent, Prepare returns errdefs.ErrResourceExhausted. LabelFrom makes the snapshot a fork.
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	mounts, err := runInKernel(ctx, s,
		func(ctx context.Context) ([]mount.Mount, error) { return s.prepare(ctx, key, parent, opts) })
	if err != nil {
		return nil, fmt.Errorf("prepare snapshot %q: %w", key, s.explain(err))
	}
	return mounts, nil
}

// prepare checks the request, takes a volume and stores the record.
func (s *Snapshotter) prepare(ctx context.Context, key, parent string, opts []snapshots.Opt) ([]mount.Mount, error) {
	ctx = log.WithLogger(ctx, log.G(ctx).WithField("key", metadata.ShowKey(key)))
	want, err := parseOptions(ctx, key, opts)
	if err != nil {
		return nil, err
	}
	from, err := s.findOrigin(ctx, key, parent)
	if err != nil {
		return nil, err
	}
	if want.fork != "" {
		return s.fork(ctx, key, parent, from, want)
	}
	least, byDefault := from.bytes, s.containerBytes(from)
	switch {
	case parent == "":
		least = leastBytes(s.config.Filesystem)
	case IsUnpackKey(key):
		byDefault = from.bytes // a layer is not grown to base_size
	}
	bytes, err := s.chooseSize(ctx, want.size, least, byDefault)
	if err != nil {
		return nil, err
	}
	if err := s.checkPool(ctx); err != nil {
		return nil, err
	}
	if parent == "" {
		if from, err = s.baseOrigin(ctx, bytes); err != nil {
			return nil, err
		}
	}
	rec := newRecord(key, parent, from, bytes, want.labels)
	id, path, err := s.takeVolume(ctx, from, rec.Size)
	if err != nil {
		return nil, s.explainMissingParent(ctx, parent, from, err)
	}
	rec.VolumeID = uint32(id)
	if path, err = s.recordAndActivate(ctx, rec, from, path); err != nil {
		return nil, err
	}
	return s.mounts(rec, path), nil
}

// origin is the volume that a new snapshot is created from.
type origin struct {
	volume     thin.ID // 0 for none: the snapshot gets a new file system
	filesystem string
	bytes      uint64
	// source is set for a fork, which gets a copy of the source's volume. The field volume is the parent's.
	source *forkGrant
}

// findOrigin returns the parent's volume, or a zero origin without a parent. It fails if key is taken.
func (s *Snapshotter) findOrigin(ctx context.Context, key, parent string) (origin, error) {
	var from origin
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
		from = origin{volume: thin.ID(rec.VolumeID), filesystem: rec.Filesystem, bytes: rec.Size}
		return nil
	})
	return from, err
}

// newRecord returns the record of a new snapshot, without volume and times.
func newRecord(key, parent string, from origin, bytes uint64, labels map[string]string) metadata.Snapshot {
	rec := metadata.Snapshot{
		Key:        key,
		Parent:     parent,
		Kind:       snapshots.KindActive,
		Labels:     labels,
		Size:       bytes,
		Filesystem: from.filesystem,
	}
	if parent == "" {
		rec.Base = uint32(from.volume)
	}
	return rec
}

// takeVolume returns a volume of the given size in bytes with the content of an origin: a spare or a new
// volume. It has no record yet. path is empty if the volume is not active.
func (s *Snapshotter) takeVolume(ctx context.Context, from origin, bytes uint64) (id thin.ID, path string, err error) {
	if from.volume == 0 {
		return s.createFilesystem(ctx, from.filesystem, bytes)
	}
	if bytes == s.containerBytes(from) {
		if id, path, ok := s.spares.take(ctx, from); ok {
			// gofail: var afterTakeSpare struct{}
			if s.pool.IsActive(id) {
				return id, path, nil
			}
			s.abandon(id, errors.New("another program removed its device"))
		}
	}
	if bytes != from.bytes {
		return s.createLarger(ctx, from, bytes)
	}
	id, err = s.createVolume(ctx, from, s.ids.take)
	return id, "", err
}

// takeID is idSource.take or idSource.takeToWrite.
type takeID func(context.Context) (thin.ID, error)

// createLarger creates a volume that is larger than its origin, and grows its file system.
func (s *Snapshotter) createLarger(ctx context.Context, from origin, bytes uint64) (thin.ID, string, error) {
	id, path, err := s.createActive(ctx, from, bytes, s.ids.takeToWrite)
	if err != nil {
		return 0, "", err
	}
	if err := s.fs.Grow(path, from.filesystem, bytes); err != nil {
		s.abandon(id, err)
		return 0, "", err
	}
	// gofail: var afterGrow struct{}
	return id, path, nil
}

func (s *Snapshotter) createActive(
	ctx context.Context, from origin, bytes uint64, take takeID,
) (thin.ID, string, error) {
	id, err := s.createVolume(ctx, from, take)
	if err != nil {
		return 0, "", err
	}
	vol, err := s.pool.Activate(ctx, id, bytes, false)
	if err != nil {
		s.abandon(id, err)
		return 0, "", err
	}
	// gofail: var afterActivateChild struct{}
	return id, vol.Path, nil
}

// createVolume creates a snapshot of an origin in the pool. Its id is in an open lease: without a record,
// the start after a crash deletes the volume.
func (s *Snapshotter) createVolume(ctx context.Context, from origin, take takeID) (thin.ID, error) {
	id, err := take(ctx)
	if err != nil {
		return 0, err
	}
	s.noteVolume(ctx, id)
	// gofail: var beforeCreateSnap struct{}
	if err := s.pool.CreateSnap(ctx, id, from.volume); err != nil {
		s.notCreated(id, err)
		return 0, err
	}
	// gofail: var afterCreateSnap struct{}
	return id, nil
}

// recordAndActivate stores the record of a new snapshot and, if path is empty, activates the volume at the
// same time. The lock keeps a reader of the new record from activating the volume too. On failure both are
// undone, unless the store is in doubt.
func (s *Snapshotter) recordAndActivate(
	ctx context.Context, rec metadata.Snapshot, from origin, path string,
) (string, error) {
	id := thin.ID(rec.VolumeID)
	s.noteVolume(ctx, id)
	unlock, err := s.volumes.locks.lock(ctx, id)
	if err != nil {
		s.abandon(id, err)
		return "", err
	}
	defer unlock()
	s.volumes.noteCreated(id)
	var recordErr error
	if path != "" {
		recordErr = s.record(ctx, rec, from)
	} else {
		recorded := make(chan result[struct{}], 1)
		go func() {
			var r result[struct{}]
			defer func() {
				r.panicked = recover()
				recorded <- r
			}()
			r.err = s.record(ctx, rec, from)
		}()
		vol, activateErr := s.pool.Activate(ctx, id, rec.Size, false)
		// gofail: var afterActivate struct{}
		path, err = vol.Path, activateErr
		r := <-recorded
		if r.panicked != nil {
			s.abandon(id, errPanic)
		}
		recordErr = r.outcome()
	}
	if recordErr != nil {
		if s.ids.isWritten(id) {
			// The record may be stored without the stamp.
			recordErr = errors.Join(recordErr, s.removeRecord(context.WithoutCancel(ctx), rec.Key, id))
		}
		s.abandon(id, recordErr)
		return "", recordErr
	}
	if err == nil {
		err = s.noteCreatedLSN(rec, path)
	}
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx) // the caller has received an error, and may try again
	}
	if err != nil {
		return "", errors.Join(err, s.removeRecord(context.WithoutCancel(ctx), rec.Key, id))
	}
	return path, nil
}

// noteCreatedLSN records the log sequence number of the xfs of a new unpack. At the Commit, the same
// number means that no log was written (needsRecovery).
func (s *Snapshotter) noteCreatedLSN(rec metadata.Snapshot, path string) error {
	if !isUnpack(rec) || rec.Filesystem != filesystem.XFS {
		return nil
	}
	sb, err := s.fs.Identify(path)
	if err == nil && sb.Type == filesystem.XFS {
		s.volumes.noteLSN(thin.ID(rec.VolumeID), sb.LSN)
	}
	return err
}

func (s *Snapshotter) record(ctx context.Context, rec metadata.Snapshot, from origin) error {
	rec.Created = now()
	rec.Updated = rec.Created
	// gofail: var beforeRecord struct{}
	err := s.ids.claim(ctx, thin.ID(rec.VolumeID), func() error { return s.createRecord(ctx, rec, from) })
	if err != nil {
		return err
	}
	// gofail: var afterRecord struct{}
	s.ids.resolve(thin.ID(rec.VolumeID))
	return nil
}

// errRecordStays reports a snapshot whose Prepare failed but whose record could not be removed.
var errRecordStays = errors.New("the record stays: remove the snapshot")

// removeRecord removes the record of a snapshot whose Prepare failed, unless the key now belongs to another
// snapshot. It returns errRecordStays if it cannot.
func (s *Snapshotter) removeRecord(ctx context.Context, key string, id thin.ID) error {
	err := s.store.Update(ctx, func(tx *metadata.Tx) error {
		if err := requireVolume(tx, key, id); err != nil {
			return err
		}
		_, err := tx.Remove(key, now())
		return err
	})
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove the record of snapshot %q, which could not be prepared: %w: %w", key, errRecordStays, err)
	}
	s.reaper.addLater(id)
	return nil
}

// createRecord stores the record of a new active snapshot or View. It fails if the parent no longer has the
// volume of the origin, or if the source of a fork is no longer active.
func (s *Snapshotter) createRecord(ctx context.Context, rec metadata.Snapshot, from origin) error {
	return s.store.Update(ctx, func(tx *metadata.Tx) error {
		if err := requireParent(tx, rec.Parent, from); err != nil {
			return err
		}
		if from.source != nil {
			if _, err := from.source.find(tx); err != nil {
				return err
			}
		}
		return tx.Create(rec)
	})
}

// requireParent returns errdefs.ErrNotFound if the parent no longer has the origin's volume.
func requireParent(tx *metadata.Tx, parent string, from origin) error {
	if parent == "" {
		return nil
	}
	if err := requireVolume(tx, parent, from.volume); err != nil {
		return fmt.Errorf("parent: %w", err)
	}
	return nil
}

// requireVolume returns errdefs.ErrNotFound if key no longer has this volume: the snapshot was removed, and
// may have been created again.
func requireVolume(tx *metadata.Tx, key string, id thin.ID) error {
	rec, err := tx.Get(key)
	if err == nil && thin.ID(rec.VolumeID) != id {
		err = fmt.Errorf("snapshot %q was removed and created again: %w", key, errdefs.ErrNotFound)
	}
	return err
}

// explainMissingParent returns errdefs.ErrNotFound instead of err if the parent was removed after its
// record was read: its volume may have been deleted.
func (s *Snapshotter) explainMissingParent(ctx context.Context, parent string, from origin, err error) error {
	// ctx may have ended; a removed parent must not look like data loss.
	ctx = context.WithoutCancel(ctx)
	gone := s.store.View(ctx, func(tx *metadata.Tx) error { return requireParent(tx, parent, from) })
	if errdefs.IsNotFound(gone) {
		return gone
	}
	return err
}
