package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// unpackOptions mount an ext4 without its journal (ext4(5)): a layer is written once and flushed
// once, at its Commit, instead of twice and six times. A crash in between loses nothing of value:
// containerd unpacks the layer again, under another key.
var unpackOptions = []string{"noload", "nobarrier"} //nolint:gochecknoglobals // a constant

// isUnpack tells whether a layer is unpacked into the snapshot.
func isUnpack(rec metadata.Snapshot) bool {
	return rec.Kind == snapshots.KindActive && IsUnpackKey(rec.Key)
}

// IsUnpackKey tells whether a stored key is one that containerd 1.6 to 2.4 and BuildKit give to a snapshot
// into which they unpack a layer: NAMESPACE/NUMBER/ before snapshots.UnpackKeyFormat, that is
// "extract-", a unique part, a space and the layer's chain id. Clients choose their keys: a part of
// that form is not enough ("extract-logs" is a container).
func IsUnpackKey(stored string) bool {
	_, key := metadata.SplitKey(stored)
	parts := strings.Split(key, "/")
	if len(parts) != 3 || parts[0] == "" {
		return false
	}
	if _, err := strconv.ParseUint(parts[1], 10, 64); err != nil {
		return false
	}
	name, isExtract := strings.CutPrefix(parts[2], snapshots.UnpackKeyPrefix+"-")
	unique, chainID, isComplete := strings.Cut(name, " ")
	return isExtract && isComplete && unique != "" && digest.Digest(chainID).Validate() == nil
}

// withoutJournal tells whether a snapshot is mounted without the journal of its file system. Mount
// options about the journal ask for one.
func (s *Snapshotter) withoutJournal(rec metadata.Snapshot) bool {
	return isUnpack(rec) && rec.Filesystem == filesystem.Ext4 &&
		!slices.ContainsFunc(s.config.MountOptions, func(option string) bool {
			return strings.HasPrefix(option, "journal") || strings.HasPrefix(option, "data") ||
				strings.HasPrefix(option, "commit")
		})
}

// requireUninterrupted fails for a snapshot into which a layer was being unpacked when the machine
// crashed: without barriers, even the superblock of an unmounted file system may be newer than
// the rest. Such a volume is active until its Commit or Remove, unless the machine went down. If it
// is active read-only, it was activated since, to be measured.
//
// If nothing was written to it since its creation, or since an orderly stop (sealUnpack), it is
// whole: a key is not stuck because of a crash that had nothing to spoil.
func (s *Snapshotter) requireUninterrupted(ctx context.Context, rec metadata.Snapshot) error {
	id := thin.ID(rec.VolumeID)
	if !isUnpack(rec) || rec.Filesystem != filesystem.Ext4 {
		return nil
	}
	// A device that went with its pool may have lost what its disk had not flushed.
	if s.volumes.wasCreatedHere(id) && s.pool.IsActive(id) {
		return nil
	}
	// A Commit that was interrupted leaves a device that refuses writes, too.
	if err := s.restore(ctx, id); err != nil {
		return err
	}
	vol, err := s.pool.Lookup(ctx, id)
	if err == nil && !vol.ReadOnly {
		return nil
	}
	if err != nil && !errors.Is(err, devmapper.ErrNotFound) {
		return err
	}
	writes, err := s.pool.Writes(ctx, id)
	if err != nil {
		return fmt.Errorf("find out whether volume %d was written to when the machine went down: %w", id, err)
	}
	if writes.SinceSnapshot || writes.Undated {
		return fmt.Errorf("a layer was being unpacked into it when the machine went down, or the pool was deactivated: "+
			"remove it and unpack the layer again: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}

// sealWait bounds how long Close waits for the unpacks to be sealed.
const sealWait = 5 * time.Second

// sealUnpacks seals the unpacks that are not in use, for a restart of the machine that may follow.
func (s *Snapshotter) sealUnpacks() {
	ctx, cancel := context.WithTimeout(context.Background(), sealWait)
	defer cancel()
	var work sync.WaitGroup
	work.Go(func() {
		if err := s.sealAll(ctx); err != nil {
			log.L.WithError(err).Warn("layers that are being unpacked have to be unpacked again if the machine restarts now")
		}
	})
	waitAtMost(&work, sealWait)
}

func (s *Snapshotter) sealAll(ctx context.Context) error {
	active, err := s.pool.Active(ctx)
	if err != nil {
		return err
	}
	var unpacks []thin.ID
	err = s.store.View(ctx, func(tx *metadata.Tx) error {
		for _, vol := range active {
			owner, _ := tx.Owner(uint32(vol.ID))
			if owner.Kind != metadata.OwnerSnapshot || !IsUnpackKey(owner.Key) {
				continue
			}
			if rec, err := tx.Get(owner.Key); err == nil && isUnpack(rec) && rec.Filesystem == filesystem.Ext4 {
				unpacks = append(unpacks, vol.ID)
			}
		}
		return nil
	})
	for _, id := range unpacks {
		err = errors.Join(err, s.sealUnpack(ctx, id))
	}
	return err
}

// sealUnpack puts the content of a volume that is not in use on stable storage, and takes a snapshot
// of it, which it deletes. From then on the metadata of the pool tells whether the volume was written
// to since. The volume stays active: its client may be about to mount it.
func (s *Snapshotter) sealUnpack(ctx context.Context, id thin.ID) error {
	unlock, err := s.volumes.locks.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	vol, err := s.pool.Lookup(ctx, id)
	if err != nil || vol.OpenCount > 0 || vol.ReadOnly || s.volumes.hasWritesLost(id) {
		return err
	}
	// gofail: var beforeSeal struct{}
	if err := s.pool.Flush(ctx, id); err != nil {
		return fmt.Errorf("flush volume %d: %w", id, err)
	}
	mark, err := s.ids.take(ctx)
	if err != nil {
		return err
	}
	if err := s.pool.Suspend(ctx, id); err != nil {
		s.ids.resolve(mark)
		return fmt.Errorf("suspend volume %d: %w", id, errors.Join(err, s.pool.Resume(id)))
	}
	// gofail: var afterSuspendToSeal struct{}
	err = s.pool.CreateSnap(ctx, mark, id)
	// gofail: var afterSnapshotToSeal struct{}
	err = errors.Join(err, s.pool.Resume(id))
	// gofail: var afterResumeToSeal struct{}
	if err != nil {
		s.notCreated(mark, err)
		return fmt.Errorf("seal volume %d: %w", id, err)
	}
	return s.deleteVolume(ctx, mark)
}
