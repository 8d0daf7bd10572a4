package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// Frozen is the content of a snapshot at one moment: an active volume that refuses writes. Its file system
// can be mounted read-only without recovery, and the pool's metadata on disk has all of its blocks.
type Frozen struct {
	// Key is the key of the snapshot.
	Key string
	// ID is the snapshot's own volume, or a copy that Release deletes.
	ID thin.ID
	// Path is the path of the device, Filesystem the type of its file system, and Bytes its size.
	Path, Filesystem string
	Bytes            uint64

	release func(ctx context.Context)
	once    sync.Once
}

// Release ends the use of the device. It must be called once the device is unused, and may be called again.
// A copy that is still in use, or that cannot be deleted before ctx ends, is deleted later.
func (f *Frozen) Release(ctx context.Context) { f.once.Do(func() { f.release(ctx) }) }

// Freeze returns the content of a snapshot at one moment. A snapshot of any kind can be frozen, even while
// it is in use.
//
// For a committed snapshot or a View it is the volume itself, which is neither deactivated nor deleted
// before Release. For an active snapshot it is a copy with its journal replayed. To make it, the volume is
// suspended and resumed, which freezes a file system that this host has mounted. Nothing is written to the
// volume.
//
// Freeze returns errdefs.ErrResourceExhausted if the pool is short of space, as Prepare does, or if there
// are too many copies. It returns errdefs.ErrDataLoss for a damaged file system, and errdefs.ErrUnavailable
// for a snapshot that is mounted without a journal (IsUnpackKey).
func (s *Snapshotter) Freeze(ctx context.Context, key string) (*Frozen, error) {
	frozen, err := runInKernel(ctx, s, func(ctx context.Context) (*Frozen, error) { return s.freeze(ctx, key) })
	if err != nil {
		return nil, fmt.Errorf("freeze snapshot %q: %w", key, s.explain(err))
	}
	return frozen, nil
}

func (s *Snapshotter) freeze(ctx context.Context, key string) (*Frozen, error) {
	rec, err := s.get(ctx, key)
	if err != nil {
		return nil, err
	}
	freeze := s.freezeCommitted
	if rec.Kind == snapshots.KindActive {
		freeze = s.freezeActive
	}
	frozen, err := freeze(ctx, rec)
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx) // the caller has received an error
		frozen.Release(context.WithoutCancel(ctx))
	}
	if err != nil {
		return nil, err
	}
	return frozen, nil
}

// freezeCommitted freezes a committed snapshot or a View, whose volume cannot be written to.
func (s *Snapshotter) freezeCommitted(ctx context.Context, rec metadata.Snapshot) (*Frozen, error) {
	id := thin.ID(rec.VolumeID)
	s.noteVolume(ctx, id)
	unpin := s.volumes.pin(id)
	release := func(context.Context) {
		unpin()
		s.reaper.add(id, false)
	}
	vol, err := s.volumes.ensureActive(ctx, id, rec.Size, true)
	// A snapshot that was removed before the pin may have been discarded.
	gone := s.store.View(context.WithoutCancel(ctx), func(tx *metadata.Tx) error { return requireVolume(tx, rec.Key, id) })
	if gone != nil {
		err = gone
	}
	if err != nil {
		release(ctx)
		return nil, err
	}
	return frozenVolume(rec, vol, release), nil
}

func (s *Snapshotter) freezeActive(ctx context.Context, rec metadata.Snapshot) (*Frozen, error) {
	if err := s.checkPool(ctx); err != nil {
		return nil, err
	}
	rec, unlock, err := s.lockActive(ctx, rec.Key)
	if err != nil {
		return nil, err
	}
	defer unlock()
	copied, err := s.copyWhole(ctx, rec)
	if err != nil {
		return nil, err
	}
	return frozenVolume(rec, copied, func(ctx context.Context) { s.deleteCopy(ctx, copied.ID) }), nil
}

// lockActive locks the volume of an active snapshot. Without one, it returns errdefs.ErrNotFound.
func (s *Snapshotter) lockActive(ctx context.Context, key string) (rec metadata.Snapshot, unlock func(), err error) {
	unlock, err = s.lockVolumeOf(ctx, func() (_ metadata.Snapshot, err error) {
		if rec, err = s.get(ctx, key); err == nil && rec.Kind != snapshots.KindActive {
			err = fmt.Errorf("it was removed and created again: %w", errdefs.ErrNotFound)
		}
		return rec, err
	})
	return rec, unlock, err
}

func frozenVolume(rec metadata.Snapshot, vol pool.Volume, release func(context.Context)) *Frozen {
	return &Frozen{
		Key: rec.Key, ID: vol.ID, Path: vol.Path, Filesystem: rec.Filesystem, Bytes: rec.Size, release: release,
	}
}

// copyWhole returns a frozen copy of an active snapshot. The copy is whole, like that of finalizeContent.
// The caller holds the volume's lock, and deletes the copy with deleteCopy.
func (s *Snapshotter) copyWhole(ctx context.Context, rec metadata.Snapshot) (copied pool.Volume, err error) {
	id := thin.ID(rec.VolumeID)
	s.noteVolume(ctx, id)
	if err := s.requireUninterrupted(ctx, rec); err != nil {
		return pool.Volume{}, err
	}
	if err := s.requireNoWritesLost(ctx, id); err != nil {
		return pool.Volume{}, err
	}
	if err := s.beginCopy(ctx); err != nil {
		return pool.Volume{}, err
	}
	copied.ID = id
	isWhole := false
	defer func() { // runs after a panic, too
		switch {
		case isWhole:
			s.copies.made(copied.ID, id)
			return
		case copied.ID != id:
			s.abandon(copied.ID, err)
		}
		s.copies.failed()
	}()
	own, err := s.volumes.ensureActiveLocked(ctx, id, rec.Size, false)
	if err != nil {
		return copied, err
	}
	for deadline := time.Now().Add(busyWait); ; {
		again, err := s.tryCopy(ctx, own, rec, &copied, deadline)
		if err != nil {
			return copied, err
		}
		if !again {
			break
		}
		if own, err = s.pool.Lookup(ctx, id); err != nil {
			return copied, err
		}
	}
	if err := s.requireFilesystem(copied, rec); err != nil {
		return copied, err
	}
	isWhole = true
	return copied, nil
}

// requireFilesystem fails if a volume does not have the file system of its record: a virtual machine can
// write anything to its disk.
func (s *Snapshotter) requireFilesystem(vol pool.Volume, rec metadata.Snapshot) error {
	sb, err := s.fs.Identify(vol.Path)
	if errors.Is(err, filesystem.ErrNotRecognised) || err == nil && sb.Type != rec.Filesystem {
		return fmt.Errorf("its disk no longer has the %s file system that it was created with: a virtual machine has "+
			"overwritten it: %w", rec.Filesystem, errdefs.ErrFailedPrecondition)
	}
	return err
}

// FindMounted returns the key of the snapshot for which Prepare, View or Mounts returned this mount. For a
// frozen copy that is the snapshot that was copied, for a base volume one of its Views. Any other mount is
// errdefs.ErrNotFound.
func (s *Snapshotter) FindMounted(ctx context.Context, m mount.Mount) (key string, err error) {
	id, known := s.volumeOfMount(m)
	if known {
		err = s.store.View(ctx, func(tx *metadata.Tx) error {
			id = s.copies.original(id)
			owner, _ := tx.Owner(uint32(id))
			switch owner.Kind {
			case metadata.OwnerSnapshot:
				key = owner.Key
			case metadata.OwnerBase:
				key, _ = tx.ViewOf(uint32(id))
			case metadata.OwnerUnknown, metadata.OwnerTrash, metadata.OwnerKept:
			}
			return nil
		})
	}
	if err == nil && key == "" {
		err = fmt.Errorf("no snapshot is mounted from %s (%s): %w", m.Source, m.Type, errdefs.ErrNotFound)
	}
	return key, err
}

// wholeTime limits RequireWhole, which waits for the disk.
const wholeTime = 30 * time.Second

// RequireWhole fails with errdefs.ErrDataLoss for an active snapshot that may have lost writes, or whose
// file system is damaged. A missing snapshot is no error.
func (s *Snapshotter) RequireWhole(ctx context.Context, key string) error {
	ctx, cancel := context.WithTimeout(ctx, wholeTime)
	defer cancel()
	_, err := runInKernel(ctx, s, func(ctx context.Context) (struct{}, error) {
		rec, unlock, err := s.lockActive(ctx, key)
		if errdefs.IsNotFound(err) {
			return struct{}{}, nil
		}
		if err != nil {
			return struct{}{}, err
		}
		defer unlock()
		return struct{}{}, s.requireWhole(ctx, rec)
	})
	if err != nil {
		return fmt.Errorf("snapshot %q: %w", key, s.explain(err))
	}
	return nil
}

// requireWhole is RequireWhole for a volume whose lock the caller holds. In a degraded pool it does not
// read the volume, because a write back before that would not end.
func (s *Snapshotter) requireWhole(ctx context.Context, rec metadata.Snapshot) error {
	id := thin.ID(rec.VolumeID)
	if err := s.requireNoWritesLost(ctx, id); err != nil {
		return err
	}
	status, err := s.pool.Status(ctx)
	if err != nil || poolError(status) != nil {
		return err
	}
	vol, err := s.lookupResumed(ctx, id)
	if errors.Is(err, devmapper.ErrNotFound) {
		return nil
	}
	if err == nil && s.fs.Mounted(vol.Path, rec.Filesystem) {
		err = s.noteFlush(ctx, id, s.fs.Sync(vol.Path, rec.Filesystem))
	}
	if err == nil {
		err = s.requireUndamaged(ctx, vol)
	}
	if errors.Is(err, errStillMounted) {
		return nil
	}
	return err
}

// volumeOfMount returns the volume of a mount, and false for a mount that is not thinsnap's.
func (s *Snapshotter) volumeOfMount(m mount.Mount) (thin.ID, bool) {
	if m.Type == "bind" {
		name, below := strings.CutPrefix(m.Source, s.config.MountDir+"/")
		name, _, _ = strings.Cut(name, "/")
		id, err := strconv.ParseUint(name, 10, 32)
		return thin.ID(id), below && err == nil && m.Source == filesystem.MountPath(s.mountDir(thin.ID(id)))
	}
	name := filepath.Base(m.Source)
	id, err := strconv.ParseUint(name[strings.LastIndex(name, "-")+1:], 10, 32)
	return thin.ID(id), err == nil && m.Source == s.pool.VolumePath(thin.ID(id))
}
