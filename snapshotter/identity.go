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

// MostVerified is the number of adopted volumes that are verified to prove that a pool is the recorded one.
const MostVerified = 4

// verifyFunc compares the file system of a witness, a volume that can prove the pool's identity, with the
// store. It returns thin.ErrNoDevice if the pool has no such volume.
type verifyFunc func(context.Context, metadata.Witness) error

// verifyIdentity detects a pool that lost its content, or another pool in its place. It compares the file
// systems of adopted volumes and of a base volume with the store, and returns the lost base volumes of
// verifyBases.
func (s *Snapshotter) verifyIdentity(ctx context.Context) (lost []metadata.BaseRecord, err error) {
	var adopted []metadata.Witness
	if err := s.store.View(ctx, func(tx *metadata.Tx) (err error) {
		adopted, err = tx.AdoptedWitnesses()
		return err
	}); err != nil {
		return nil, err
	}
	var activated []thin.ID
	defer func() {
		for _, id := range activated {
			if err == nil {
				s.reaper.add(id, false)
			} else { // the start fails, and ends the background work
				err = errors.Join(err, s.volumes.deactivateWithRetry(context.WithoutCancel(ctx), id))
			}
		}
	}()
	verify := func(ctx context.Context, w metadata.Witness) error {
		if id := thin.ID(w.VolumeID); !s.pool.IsActive(id) {
			activated = append(activated, id)
		}
		return s.verifyWitness(ctx, w)
	}
	verified, missing, err := verifyAdopted(ctx, adopted, verify)
	if err != nil {
		return nil, err
	}
	lost, err = s.verifyBases(ctx, verified > 0, verify)
	if err != nil || len(missing) == 0 {
		return lost, err
	}
	if bases, err := s.listBases(ctx); err != nil || verified == 0 && len(bases) == 0 {
		return nil, errors.Join(err, notProved(fmt.Sprintf("adopted volume %d", missing[0])))
	}
	log.G(ctx).WithField("volumes", missing).Warn("volumes of committed snapshots are not in the pool: see `thinsnap check`")
	return lost, nil
}

// verifyAdopted verifies up to MostVerified adopted volumes. It returns how many it verified, and the
// volumes that it found missing.
func verifyAdopted(
	ctx context.Context, adopted []metadata.Witness, verify verifyFunc,
) (verified int, missing []uint32, err error) {
	for _, w := range adopted {
		err := verify(ctx, w)
		switch {
		case errors.Is(err, thin.ErrNoDevice):
			missing = append(missing, w.VolumeID)
			continue
		case err != nil:
			return verified, missing, fmt.Errorf("adopted volume %d (%s, %d bytes): %w", w.VolumeID, w.Filesystem, w.Size, err)
		}
		if verified++; verified == MostVerified {
			break
		}
	}
	return verified, missing, nil
}

// notProved is the error for a pool without a volume that proves its identity.
func notProved(volume string) error {
	return fmt.Errorf("%s is not in the pool, and no other volume shows that this is the "+
		"pool that the store belongs to; nothing was changed: restore the store and the pool from the same moment, or start "+
		"over with `thinsnap pool destroy`: %w", volume, errdefs.ErrFailedPrecondition)
}

func (s *Snapshotter) verifyWitness(ctx context.Context, w metadata.Witness) error {
	id := thin.ID(w.VolumeID)
	vol, err := s.volumes.ensureActive(ctx, id, w.Size, true)
	if errors.Is(err, thin.ErrNoDevice) {
		return err
	}
	if err != nil {
		return s.explain(err)
	}
	// gofail: var afterActivateBaseToVerify struct{}
	err = checkWitness(s.fs, vol.Path, w)
	if errors.Is(err, pool.ErrWrongPool) {
		return fmt.Errorf("%w: this is not the pool that the store belongs to; nothing was changed: "+
			"restore the store and the pool from the same moment, or start over with `thinsnap pool destroy`: %w",
			err, errdefs.ErrFailedPrecondition)
	}
	return s.explain(err)
}

// VerifyWitness activates a witness, compares its file system with the record, and deactivates it. It
// returns pool.ErrWrongPool if they differ, and thin.ErrNoDevice if the pool has no such volume.
func VerifyWitness(ctx context.Context, p Pool, fs Filesystem, w metadata.Witness) (err error) {
	vol, err := p.Activate(ctx, thin.ID(w.VolumeID), w.Size, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, newVolumes(p).deactivateWithRetry(ctx, vol.ID)) }()
	return checkWitness(fs, vol.Path, w)
}

// checkWitness compares the file system at path with a record. It returns pool.ErrWrongPool if they differ.
func checkWitness(fs Filesystem, path string, w metadata.Witness) error {
	sb, err := fs.Identify(path)
	if err != nil && !errors.Is(err, filesystem.ErrNotRecognised) {
		return err
	}
	if sb.UUID != w.UUID || sb.Type != w.Filesystem {
		return fmt.Errorf("has a file system with UUID %q (%s), but should have %q (%s): %w", sb.UUID, sb.Type, w.UUID,
			w.Filesystem, pool.ErrWrongPool)
	}
	return nil
}
