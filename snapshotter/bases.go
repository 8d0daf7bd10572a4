package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// maxLayers is the number of committed snapshots that are read if all base volumes are lost. One is not
// enough: its volume may be lost too, or come from a base volume that was removed.
const maxLayers = 8

// verifyBases verifies the first base volume that is in the pool, beginning with the configured one. It
// returns the lost ones before that, provided that another volume proves the pool's identity: a base
// volume, a snapshot of one, or an adopted volume.
func (s *Snapshotter) verifyBases(
	ctx context.Context, proved bool, verify verifyFunc,
) (lost []metadata.BaseRecord, err error) {
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
		err := verify(ctx, b.Witness())
		if errors.Is(err, thin.ErrNoDevice) {
			lost = append(lost, b)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("base volume %d (%s, %d bytes): %w", b.VolumeID, b.Filesystem, b.Size, err)
		}
		return lost, nil
	}
	if len(lost) == 0 || proved || s.provedBySnapshot(ctx, lost, verify) {
		return lost, nil
	}
	return nil, notProved(fmt.Sprintf("base volume %d (%s, %d bytes)", lost[0].VolumeID, lost[0].Filesystem, lost[0].Size))
}

// provedBySnapshot reports whether a committed snapshot has the file system of one of these lost base
// volumes.
func (s *Snapshotter) provedBySnapshot(ctx context.Context, lost []metadata.BaseRecord, verify verifyFunc) bool {
	var layers []metadata.Snapshot
	enough := errors.New("enough")
	err := s.store.View(ctx, func(tx *metadata.Tx) error {
		return tx.ForEach(func(rec metadata.Snapshot) error {
			if rec.Kind == snapshots.KindCommitted {
				layers = append(layers, rec)
			}
			if len(layers) == maxLayers {
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
			if verify(ctx, b.Witness()) == nil {
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

// renewBases creates the configured base volume, unless one with the configured options exists. It moves
// all others without Views to the trash, because snapshots share their blocks and do not need the volumes.
// While any base volume is left, a failure to create it is only a warning.
func (s *Snapshotter) renewBases(ctx context.Context, lost []metadata.BaseRecord) error {
	for _, b := range lost {
		log.G(ctx).WithField("volume", b.VolumeID).WithField("filesystem", b.Filesystem).WithField("bytes", b.Size).
			Warn("a base volume is not in the pool; only Views without a parent need it")
	}
	bases, err := s.listBases(ctx)
	if err != nil {
		return err
	}
	// If all are lost, their records stay until a new base volume exists. A store without such records
	// would accept any pool of that name at the next start.
	if len(lost) < len(bases) {
		if err := s.discardBases(ctx, lost); err != nil {
			return err
		}
		lost = nil
		if bases, err = s.listBases(ctx); err != nil {
			return err
		}
	}
	if err := s.renewConfiguredBase(ctx, lost); err != nil {
		if len(bases) == len(lost) {
			return err
		}
		log.G(ctx).WithError(err).Warn("cannot create the base volume that filesystem.type, base_size and mkfs_options " +
			"describe; the next start, or a snapshot that needs it, tries again")
		return nil
	}
	for _, b := range bases {
		if b.Filesystem == s.config.Filesystem && b.Size < s.config.BaseBytes {
			log.G(ctx).WithField("was", b.Size).WithField("is", s.config.BaseBytes).Info("filesystem.base_size was raised: " +
				"new containers of existing images are grown to it")
		}
	}
	unneeded := slices.DeleteFunc(bases, func(b metadata.BaseRecord) bool {
		return baseKey{b.Filesystem, b.Size} == s.configuredBase()
	})
	return s.discardBases(ctx, unneeded)
}

func (s *Snapshotter) renewConfiguredBase(ctx context.Context, lost []metadata.BaseRecord) error {
	for _, b := range lost {
		if (baseKey{b.Filesystem, b.Size}) == s.configuredBase() {
			return s.replaceLostBase(ctx, b)
		}
	}
	current, err := s.ensureBase(ctx, s.configuredBase())
	if err != nil || slices.Equal(current.MkfsOptions, s.config.MkfsOptions) {
		return err
	}
	log.G(ctx).WithField("was", current.MkfsOptions).WithField("is", s.config.MkfsOptions).
		Warn("filesystem.mkfs_options has changed: it applies to new snapshots without a parent; existing snapshots and " +
			"their children keep theirs")
	_, err = s.createBase(ctx, s.configuredBase())
	return err
}

// replaceLostBase replaces a lost base volume with a new one of the configuration, unless it has Views.
func (s *Snapshotter) replaceLostBase(ctx context.Context, b metadata.BaseRecord) error {
	views := 0
	err := s.store.View(ctx, func(tx *metadata.Tx) (err error) {
		views, err = tx.Views(b.VolumeID)
		return err
	})
	if err == nil && views == 0 {
		_, err = s.createBase(ctx, s.configuredBase())
	}
	return err
}

// discardBases moves base volumes without Views to the trash.
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
