package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// maxWitnesses is how many snapshots are looked at if all base volumes are lost: the others of the
// pool may be lost, too, or come from a base volume that was removed.
const maxWitnesses = 8

// verifyBases activates one base volume, the configured one if there is one, and compares the UUID
// of its file system: a pool that lost its content, or another pool in its place, is found here. It
// returns the base volumes that are not in the pool, if another one is, or a snapshot of one.
func (s *Snapshotter) verifyBases(ctx context.Context) (lost []metadata.BaseRecord, err error) {
	bases, err := s.listBases(ctx)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(bases, func(a, b metadata.BaseRecord) int {
		switch s.configuredBase() {
		case baseKey{a.Filesystem, a.Size}:
			return -1
		case baseKey{b.Filesystem, b.Size}:
			return 1
		}
		return b.Created.Compare(a.Created)
	})
	for _, b := range bases {
		err := s.verifyBase(ctx, b)
		if errors.Is(err, thin.ErrNoDevice) {
			lost = append(lost, b)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("base volume %d (%s, %d bytes): %w", b.VolumeID, b.Filesystem, b.Size, err)
		}
		return lost, nil
	}
	if len(lost) == 0 || s.verifyWitness(ctx, lost) {
		return lost, nil
	}
	return nil, fmt.Errorf("base volume %d (%s, %d bytes) is not in the pool, and no other volume shows that this is the "+
		"pool that the store belongs to; nothing was changed: restore the store and the pool from the same moment, or start "+
		"over with `thinsnap pool destroy`: %w",
		lost[0].VolumeID, lost[0].Filesystem, lost[0].Size, errdefs.ErrFailedPrecondition)
}

// verifyWitness tells whether a committed snapshot has the file system of one of these base volumes,
// which are lost. It shows whose the pool is, as the base volume would have.
func (s *Snapshotter) verifyWitness(ctx context.Context, lost []metadata.BaseRecord) bool {
	var layers []metadata.Snapshot
	enough := errors.New("enough")
	err := s.store.View(ctx, func(tx *metadata.Tx) error {
		return tx.ForEach(func(rec metadata.Snapshot) error {
			if rec.Kind == snapshots.KindCommitted {
				layers = append(layers, rec)
			}
			if len(layers) == maxWitnesses {
				return enough
			}
			return nil
		})
	})
	if err != nil && !errors.Is(err, enough) {
		return false
	}
	for _, layer := range layers {
		for _, b := range lost {
			b.VolumeID, b.Size = layer.VolumeID, layer.Size
			if s.verifyBase(ctx, b) == nil {
				return true
			}
		}
	}
	return false
}

func (s *Snapshotter) listBases(ctx context.Context) (bases []metadata.BaseRecord, err error) {
	err = s.store.View(ctx, func(tx *metadata.Tx) (err error) {
		bases, err = tx.Bases()
		return err
	})
	return bases, err
}

// renewBases creates the configured base volume, unless there is one that was made with the
// configured options, and moves all others to the trash: snapshots share their blocks, and do not
// need the volumes. While there is another base volume, to show whose the pool is, a failure is a
// warning: the base volume is created when a snapshot needs it.
func (s *Snapshotter) renewBases(ctx context.Context, lost []metadata.BaseRecord) error {
	for _, b := range lost {
		log.G(ctx).WithField("volume", b.VolumeID).WithField("filesystem", b.Filesystem).WithField("bytes", b.Size).
			Warn("a base volume is not in the pool; no snapshot needs it")
	}
	if err := s.discardBases(ctx, lost); err != nil {
		return err
	}
	bases, err := s.listBases(ctx)
	if err != nil {
		return err
	}
	if err := s.renewConfiguredBase(ctx); err != nil {
		if len(bases) == 0 {
			return err
		}
		log.G(ctx).WithError(err).Warn("cannot create the base volume that filesystem.type, base_size and mkfs_options " +
			"describe; the next start, or a snapshot that needs it, tries again")
		return nil
	}
	for _, b := range bases {
		if b.Filesystem == s.config.Filesystem && b.Size < s.config.BaseBytes {
			log.G(ctx).WithField("was", b.Size).WithField("is", s.config.BaseBytes).Info("filesystem.base_size was raised: " +
				"new containers of images that exist are grown to it")
		}
	}
	unneeded := slices.DeleteFunc(bases, func(b metadata.BaseRecord) bool {
		return baseKey{b.Filesystem, b.Size} == s.configuredBase()
	})
	return s.discardBases(ctx, unneeded)
}

func (s *Snapshotter) renewConfiguredBase(ctx context.Context) error {
	current, err := s.ensureBase(ctx, s.configuredBase())
	if err != nil || slices.Equal(current.MkfsOptions, s.config.MkfsOptions) {
		return err
	}
	log.G(ctx).WithField("was", current.MkfsOptions).WithField("is", s.config.MkfsOptions).
		Warn("the options of mkfs have changed: new snapshots without a parent have the new ones; those that exist, and " +
			"their children, keep theirs")
	_, err = s.createBase(ctx, s.configuredBase())
	return err
}

// discardBases moves base volumes to the trash, but not those that Views show.
func (s *Snapshotter) discardBases(ctx context.Context, bases []metadata.BaseRecord) error {
	if len(bases) == 0 {
		return nil
	}
	// gofail: var beforeDiscardBase struct{}
	err := s.store.Update(ctx, func(tx *metadata.Tx) error {
		for _, b := range bases {
			if _, err := tx.DiscardBase(b.Filesystem, b.Size, now()); err != nil && !errdefs.IsFailedPrecondition(err) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("remove base volumes that are not needed: %w", err)
	}
	// gofail: var afterDiscardBase struct{}
	for _, b := range bases {
		s.reaper.add(thin.ID(b.VolumeID), false)
	}
	return nil
}

func (s *Snapshotter) verifyBase(ctx context.Context, b metadata.BaseRecord) error {
	id := thin.ID(b.VolumeID)
	vol, err := s.volumes.ensureActive(ctx, id, b.Size, true)
	if errors.Is(err, thin.ErrNoDevice) {
		return err
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
