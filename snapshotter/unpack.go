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

// unpackOptions mount an ext4 without its journal (ext4(5)). With a journal, a layer would be written
// twice, and flushed six times instead of once, at its Commit. A crash loses nothing of value, because
// containerd unpacks the layer again, under another key.
var unpackOptions = []string{"noload", "nobarrier"} //nolint:gochecknoglobals // a constant

// isUnpack reports whether a layer is unpacked into the snapshot.
func isUnpack(rec metadata.Snapshot) bool {
	return rec.Kind == snapshots.KindActive && IsUnpackKey(rec.Key)
}

// IsUnpackKey reports whether containerd 1.6 to 2.4 or BuildKit unpacks a layer into the snapshot with a
// stored key: NAMESPACE/NUMBER/extract-UNIQUE CHAINID (snapshots.UnpackKeyFormat). The prefix alone is not
// enough: a client may name a container "extract-logs".
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

// withoutJournal reports whether a snapshot is mounted without its file system's journal: an unpack, unless
// mount options configure the journal.
func (s *Snapshotter) withoutJournal(rec metadata.Snapshot) bool {
	return isUnpack(rec) && rec.Filesystem == filesystem.Ext4 &&
		!slices.ContainsFunc(s.config.MountOptions, func(option string) bool {
			return strings.HasPrefix(option, "journal") || strings.HasPrefix(option, "data") ||
				strings.HasPrefix(option, "commit")
		})
}

// requireUninterrupted fails for a snapshot into which a layer was being unpacked when the machine went
// down. Without barriers, even the superblock of an unmounted file system may be newer than the rest. The
// volume of an unpack stays active and writable until its Commit or Remove: an inactive one shows that the
// machine went down, and a read-only one was activated after that, to be measured.
//
// A volume that was not written to since its creation, or since an orderly stop (checkpointUnpack), is
// whole, and its key remains usable.
func (s *Snapshotter) requireUninterrupted(ctx context.Context, rec metadata.Snapshot) error {
	id := thin.ID(rec.VolumeID)
	if !isUnpack(rec) || rec.Filesystem != filesystem.Ext4 {
		return nil
	}
	// IsActive, because a device that was removed with its pool may have lost writes that its disk had not
	// flushed.
	if s.volumes.wasCreatedHere(id) && s.pool.IsActive(id) {
		return nil
	}
	// An interrupted Commit also leaves a device that refuses writes.
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

// checkpointWait bounds how long Close waits for checkpointAll.
const checkpointWait = 5 * time.Second

// checkpointUnpacks checkpoints the unused unpacks, because the machine may restart next.
func (s *Snapshotter) checkpointUnpacks() {
	ctx, cancel := context.WithTimeout(context.Background(), checkpointWait)
	defer cancel()
	var work sync.WaitGroup
	work.Go(func() {
		if err := s.checkpointAll(ctx); err != nil {
			log.L.WithError(err).Warn("layers that are being unpacked have to be unpacked again if the machine restarts now")
		}
	})
	waitAtMost(&work, checkpointWait)
}

func (s *Snapshotter) checkpointAll(ctx context.Context) error {
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
		err = errors.Join(err, s.checkpointUnpack(ctx, id))
	}
	return err
}

// checkpointUnpack flushes an unused volume, takes a snapshot of it and deletes the snapshot. From then on
// the pool's metadata shows whether the volume was written to since. The volume stays active, because its
// client may be about to mount it.
func (s *Snapshotter) checkpointUnpack(ctx context.Context, id thin.ID) error {
	unlock, err := s.volumes.locks.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	vol, err := s.pool.Lookup(ctx, id)
	if err != nil || vol.OpenCount > 0 || vol.ReadOnly || s.volumes.hasWritesLost(id) {
		return err
	}
	// gofail: var beforeCheckpoint struct{}
	if err := s.noteFlush(ctx, id, s.pool.Flush(ctx, id)); err != nil {
		return fmt.Errorf("flush volume %d: %w", id, err)
	}
	checkpoint, err := s.ids.take(ctx)
	if err != nil {
		return err
	}
	if err := s.noteFlush(ctx, id, s.pool.Suspend(ctx, id)); err != nil {
		s.ids.resolve(checkpoint)
		return fmt.Errorf("suspend volume %d: %w", id, errors.Join(err, s.pool.Resume(id)))
	}
	// gofail: var afterSuspendToCheckpoint struct{}
	err = s.pool.CreateSnap(ctx, checkpoint, id)
	// gofail: var afterSnapshotToCheckpoint struct{}
	err = errors.Join(err, s.pool.Resume(id))
	// gofail: var afterResumeToCheckpoint struct{}
	if err != nil {
		s.notCreated(checkpoint, err)
		return fmt.Errorf("checkpoint volume %d: %w", id, err)
	}
	return s.deleteVolume(ctx, checkpoint)
}
