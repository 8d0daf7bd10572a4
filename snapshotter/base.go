package snapshotter

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// baseKey identifies a base volume.
type baseKey struct {
	filesystem string
	bytes      uint64
}

// configuredBase is the only base volume that snapshots without a parent are created from.
func (s *Snapshotter) configuredBase() baseKey {
	return baseKey{s.config.Filesystem, s.config.BaseBytes}
}

// baseOrigin returns the origin of a snapshot that has no parent and the given size in bytes: the base
// volume, or no volume for a smaller snapshot.
func (s *Snapshotter) baseOrigin(ctx context.Context, bytes uint64) (origin, error) {
	if bytes < s.config.BaseBytes {
		return origin{filesystem: s.config.Filesystem}, nil
	}
	base, err := s.ensureBase(ctx, s.configuredBase())
	return origin{volume: thin.ID(base.VolumeID), filesystem: base.Filesystem, bytes: base.Size}, err
}

// ensureBase returns the base volume, and creates a missing one.
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
	return s.createBase(ctx, key)
}

func (s *Snapshotter) baseRecord(ctx context.Context, key baseKey) (metadata.BaseRecord, error) {
	var rec metadata.BaseRecord
	err := s.store.View(ctx, func(tx *metadata.Tx) (err error) {
		rec, err = tx.Base(key.filesystem, key.bytes)
		return err
	})
	return rec, err
}

// createBase creates a base volume. An earlier one with the same key goes to the trash.
func (s *Snapshotter) createBase(ctx context.Context, key baseKey) (rec metadata.BaseRecord, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("create the %s base volume of %d bytes: %w", key.filesystem, key.bytes, s.explain(err))
		}
	}()
	id, path, err := s.createFilesystem(ctx, key.filesystem, key.bytes)
	if err != nil {
		return rec, err
	}
	defer func() {
		if err != nil {
			s.abandon(id, err)
		}
	}()
	sb, err := s.fs.Identify(path)
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
	var earlier metadata.BaseRecord
	if err := s.ids.claim(ctx, id, func() error {
		return s.store.Update(ctx, func(tx *metadata.Tx) (err error) {
			if earlier, err = tx.DiscardBase(key.filesystem, key.bytes, now()); err != nil && !errdefs.IsNotFound(err) {
				return err
			}
			return tx.SetBase(rec)
		})
	}); err != nil {
		return rec, err
	}
	// gofail: var afterBaseRecord struct{}
	s.ids.resolve(id)
	if earlier.VolumeID != 0 {
		s.reaper.add(thin.ID(earlier.VolumeID), false)
	}
	return rec, nil
}

// createFilesystem creates and activates a volume with an empty file system, and flushes it.
func (s *Snapshotter) createFilesystem(ctx context.Context, typ string, bytes uint64) (thin.ID, string, error) {
	id, err := s.ids.takeToWrite(ctx)
	if err != nil {
		return 0, "", err
	}
	path, err := s.makeFilesystem(ctx, id, typ, bytes)
	if err != nil {
		s.notCreated(id, err)
		return 0, "", err
	}
	return id, path, nil
}

func (s *Snapshotter) makeFilesystem(ctx context.Context, id thin.ID, typ string, bytes uint64) (string, error) {
	if err := s.pool.CreateThin(ctx, id); err != nil {
		return "", err
	}
	// gofail: var afterCreateBase struct{}
	vol, err := s.pool.Activate(ctx, id, bytes, false)
	if err != nil {
		return "", err
	}
	// gofail: var afterActivateBase struct{}
	log.G(ctx).WithField("device", vol.Path).WithField("filesystem", typ).Info("creating an empty file system")
	if err := s.fs.Make(ctx, vol.Path, typ, s.config.MkfsOptions); err != nil {
		return "", err
	}
	// gofail: var afterMakeBase struct{}
	if err := s.pool.Flush(ctx, id); err != nil {
		return "", err
	}
	// gofail: var afterFlushBase struct{}
	return vol.Path, nil
}

func leastBytes(typ string) uint64 {
	if typ == filesystem.XFS {
		return filesystem.MinXFS
	}
	return filesystem.MinExt4
}
