package snapshotter

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// baseKey identifies a base volume: an empty file system, the origin of every snapshot without a
// parent.
type baseKey struct {
	filesystem string
	bytes      uint64
}

// baseOrigin returns the base volume for a snapshot of the given size in bytes. A snapshot that is
// smaller than Config.BaseBytes needs a base volume of its own.
func (s *Snapshotter) baseOrigin(ctx context.Context, bytes uint64) (origin, error) {
	base, err := s.ensureBase(ctx, baseKey{s.config.Filesystem, min(bytes, s.config.BaseBytes)})
	return origin{thin.ID(base.VolumeID), base.Filesystem, base.Size}, err
}

// ensureBase returns the base volume, and creates it if there is none yet.
func (s *Snapshotter) ensureBase(ctx context.Context, key baseKey) (metadata.BaseRecord, error) {
	rec, err := s.baseRecord(ctx, key)
	if !errdefs.IsNotFound(err) {
		return rec, err
	}
	unlock, err := s.bases.lock(ctx, key)
	if err != nil {
		return metadata.BaseRecord{}, err
	}
	defer unlock()
	if rec, err := s.baseRecord(ctx, key); !errdefs.IsNotFound(err) {
		return rec, err
	}
	rec, err = s.createBase(ctx, key)
	if err != nil {
		return metadata.BaseRecord{}, fmt.Errorf("create the %s base volume of %d bytes: %w", key.filesystem, key.bytes,
			s.explain(err))
	}
	return rec, nil
}

func (s *Snapshotter) baseRecord(ctx context.Context, key baseKey) (metadata.BaseRecord, error) {
	var rec metadata.BaseRecord
	err := s.store.View(ctx, func(tx *metadata.Tx) (err error) {
		rec, err = tx.Base(key.filesystem, key.bytes)
		return err
	})
	return rec, err
}

func (s *Snapshotter) createBase(ctx context.Context, key baseKey) (rec metadata.BaseRecord, err error) {
	id, err := s.ids.take(ctx)
	if err != nil {
		return rec, err
	}
	if err := s.pool.CreateThin(ctx, id); err != nil {
		s.abandon(id, err)
		return rec, err
	}
	defer func() {
		if err != nil {
			s.abandon(id, err)
		}
	}()
	// gofail: var afterCreateBase struct{}
	vol, err := s.pool.Activate(ctx, id, key.bytes, false)
	if err != nil {
		return rec, err
	}
	// gofail: var afterActivateBase struct{}
	log.G(ctx).WithField("device", vol.Path).WithField("filesystem", key.filesystem).Info("creating base volume")
	if err := s.fs.Make(ctx, vol.Path, key.filesystem, s.config.MkfsOptions); err != nil {
		return rec, err
	}
	// gofail: var afterMakeBase struct{}
	if err := s.pool.Flush(ctx, id); err != nil {
		return rec, err
	}
	// gofail: var afterFlushBase struct{}
	sb, err := s.fs.Identify(vol.Path)
	if err != nil {
		return rec, err
	}
	if err := s.volumes.deactivateWithRetry(ctx, id); err != nil {
		return rec, err
	}
	// gofail: var beforeBaseRecord struct{}
	rec = metadata.BaseRecord{
		Filesystem:  key.filesystem,
		Size:        key.bytes,
		VolumeID:    uint32(id),
		UUID:        sb.UUID,
		MkfsOptions: s.config.MkfsOptions,
		Created:     now(),
	}
	if err := s.store.Update(ctx, func(tx *metadata.Tx) error { return tx.SetBase(rec) }); err != nil {
		return rec, err
	}
	// gofail: var afterBaseRecord struct{}
	s.ids.resolve(id)
	return rec, nil
}

func leastBytes(typ string) uint64 {
	if typ == filesystem.XFS {
		return filesystem.MinXFS
	}
	return filesystem.MinExt4
}

// verifyBases activates each base volume and compares the UUID of its file system: a pool that
// lost its content, or another pool in its place, is found here.
func (s *Snapshotter) verifyBases(ctx context.Context) error {
	var bases []metadata.BaseRecord
	err := s.store.View(ctx, func(tx *metadata.Tx) (err error) {
		bases, err = tx.Bases()
		return err
	})
	if err != nil {
		return err
	}
	for _, b := range bases {
		if err := s.verifyBase(ctx, b); err != nil {
			return fmt.Errorf("base volume %d (%s, %d bytes): %w", b.VolumeID, b.Filesystem, b.Size, err)
		}
	}
	return nil
}

func (s *Snapshotter) verifyBase(ctx context.Context, b metadata.BaseRecord) error {
	id := thin.ID(b.VolumeID)
	vol, err := s.volumes.ensureActive(ctx, id, b.Size, true)
	if errors.Is(err, thin.ErrNoDevice) {
		return fmt.Errorf("is not in the pool: %w", errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return s.explain(err)
	}
	defer s.reaper.add(id, false)
	// gofail: var afterActivateBaseToVerify struct{}
	err = checkBase(s.fs, vol.Path, b)
	if errors.Is(err, pool.ErrWrongPool) {
		return fmt.Errorf("%w: this is not the pool that the store belongs to; nothing was changed: "+
			"restore the store and the pool from the same moment, or start over with `thinsnap pool destroy`: %w",
			err, errdefs.ErrFailedPrecondition)
	}
	return s.explain(err)
}

// VerifyBase activates a base volume, compares the UUID of its file system with the record, and
// deactivates it. It is pool.ErrWrongPool if they differ.
func VerifyBase(ctx context.Context, p Pool, fs Filesystem, b metadata.BaseRecord) (err error) {
	vol, err := p.Activate(ctx, thin.ID(b.VolumeID), b.Size, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, newVolumes(p).deactivateWithRetry(ctx, vol.ID)) }()
	return checkBase(fs, vol.Path, b)
}

// checkBase compares the UUID of the file system at path with that of a base volume. It is
// pool.ErrWrongPool if they differ.
func checkBase(fs Filesystem, path string, b metadata.BaseRecord) error {
	sb, err := fs.Identify(path)
	if err != nil && !errors.Is(err, filesystem.ErrNotRecognised) {
		return err
	}
	if sb.UUID != b.UUID {
		return fmt.Errorf("has a file system with UUID %q, but should have %q: %w", sb.UUID, b.UUID, pool.ErrWrongPool)
	}
	return nil
}
