package snapshotter

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// Mounts returns the mount of an active snapshot or a View, and activates an inactive volume. If an active
// snapshot is open but not mounted, as by a virtual machine, Mounts returns a read-only mount of a frozen
// copy, or for an unpack errdefs.ErrUnavailable.
func (s *Snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	mounts, err := runInKernel(ctx, s,
		func(ctx context.Context) ([]mount.Mount, error) { return s.activateAndMounts(ctx, key) })
	if err != nil {
		return nil, fmt.Errorf("mounts of snapshot %q: %w", key, s.explain(err))
	}
	return mounts, nil
}

func (s *Snapshotter) activateAndMounts(ctx context.Context, key string) ([]mount.Mount, error) {
	var rec metadata.Snapshot
	unlock, err := s.lockVolumeOf(ctx, func() (_ metadata.Snapshot, err error) {
		if rec, err = s.get(ctx, key); err == nil && rec.Kind == snapshots.KindCommitted {
			err = fmt.Errorf("it is committed: create a View of it: %w", errdefs.ErrFailedPrecondition)
		}
		return rec, err
	})
	if err != nil {
		return nil, err
	}
	defer unlock()
	id := thin.ID(rec.VolumeID)
	s.noteVolume(ctx, id)
	if err := s.requireUninterrupted(ctx, rec); err != nil {
		return nil, err
	}
	vol, err := s.volumes.ensureActiveLocked(ctx, id, rec.Size, rec.Kind == snapshots.KindView)
	if err != nil {
		return nil, err
	}
	// gofail: var afterActivateToMount struct{}
	if rec.Kind == snapshots.KindView {
		return s.mounts(rec, vol.Path), nil
	}
	if len(idMappingOptions(rec)) > 0 {
		// Only mounts other than thinsnap's own show that the container runs. Without one, its next start
		// gets the id mapping.
		if err := s.dropMount(id); err != nil {
			return nil, err
		}
		if vol, err = s.pool.Lookup(ctx, id); err != nil {
			return nil, err
		}
	}
	isMounted, isOpen, err := s.awaitMountable(ctx, vol, rec.Filesystem)
	switch {
	case err != nil:
		return nil, err
	case isMounted:
		return s.bindMounts(ctx, rec, vol), nil
	case isOpen && isUnpack(rec):
		return nil, fmt.Errorf("%s is open, but not mounted, and a layer is to be unpacked into it: close it (fuser -v %s), "+
			"and try again: %w", vol.Path, vol.Path, errdefs.ErrUnavailable)
	case isOpen:
		return s.serveCopy(ctx, rec, vol)
	}
	// A virtual machine can have written the superblock. That of a View was checked by Commit.
	if sb, err := s.fs.Identify(vol.Path); err == nil && sb.Mountable() != nil {
		return nil, explainMount(sb.Mountable())
	}
	return s.mounts(rec, vol.Path), nil
}

// awaitMountable reports whether an active volume is mounted. A volume that is open without a mount must
// not be mounted, even read-only: the mount would replay the journal under a virtual machine. It waits up
// to busyWait for the close.
func (s *Snapshotter) awaitMountable(
	ctx context.Context, vol pool.Volume, typ string,
) (isMounted, isOpen bool, err error) {
	deadline := time.After(busyWait)
	for vol.OpenCount > 0 {
		if s.fs.Mounted(vol.Path, typ) {
			return true, true, nil
		}
		select {
		case <-time.After(busyStep):
		case <-ctx.Done():
			return false, false, ctx.Err()
		case <-deadline:
			return false, true, nil
		}
		if vol, err = s.pool.Lookup(ctx, vol.ID); err != nil {
			return false, false, err
		}
	}
	return false, false, nil
}

// mounts returns the mount of a snapshot with the device at path.
func (s *Snapshotter) mounts(rec metadata.Snapshot, path string) []mount.Mount {
	opts := append(s.deviceOptions(rec), idMappingOptions(rec)...)
	return []mount.Mount{{Type: rec.Filesystem, Source: path, Options: opts}}
}

func (s *Snapshotter) deviceOptions(rec metadata.Snapshot) []string {
	var opts []string
	if rec.Kind == snapshots.KindView {
		opts = append(opts, "ro")
	} else {
		opts = append(opts, "rw")
	}
	if rec.Filesystem == filesystem.XFS {
		// All snapshots of a base volume have the same UUID.
		opts = append(opts, "nouuid")
	} else {
		opts = append(opts, filesystem.OnError)
	}
	if rec.Filesystem == filesystem.Ext4 && rec.Kind != snapshots.KindView {
		opts = append(opts, filesystem.NoLazyInit)
	}
	if s.withoutJournal(rec) {
		opts = append(opts, unpackOptions...)
	}
	return append(opts, s.config.MountOptions...)
}

// bindMounts returns a bind of thinsnap's own mount of a mounted snapshot: `nerdctl commit` mounts the
// snapshot of a running container read-only, and the kernel refuses that for a device that is mounted
// writable. The mount stays until Commit or Remove. It has no id mapping, like the parent's View that it
// is compared with.
func (s *Snapshotter) bindMounts(ctx context.Context, rec metadata.Snapshot, vol pool.Volume) []mount.Mount {
	options := s.deviceOptions(rec)
	source, err := s.fs.Mount(vol.Path, rec.Filesystem, s.mountDir(vol.ID), options)
	if err != nil {
		// The volume may be mounted read-only. Its device can then be mounted read-only again.
		log.G(ctx).WithField("device", vol.Path).WithError(err).Warn("cannot bind a mounted snapshot")
		return []mount.Mount{{Type: rec.Filesystem, Source: vol.Path, Options: options}}
	}
	// gofail: var afterShare struct{}
	return []mount.Mount{{Type: "bind", Source: source, Options: []string{"rbind", "rw"}}}
}

// dropMount unmounts thinsnap's own mount of a volume, if it exists.
func (s *Snapshotter) dropMount(id thin.ID) error {
	if err := s.fs.Unmount(s.mountDir(id)); err != nil {
		return fmt.Errorf("unmount thinsnap's own mount of volume %d: %w", id, err)
	}
	return nil
}

func (s *Snapshotter) mountDir(id thin.ID) string {
	return filepath.Join(s.config.MountDir, strconv.FormatUint(uint64(id), 10))
}

// idMappingOptions returns the options that containerd turns into an idmapped mount. The record of an
// unpack can have the labels from an older thinsnap's Prepare, or from an Update; they are ignored.
func idMappingOptions(rec metadata.Snapshot) []string {
	uids := rec.Labels[snapshots.LabelSnapshotUIDMapping]
	if uids == "" || isUnpack(rec) {
		return nil
	}
	return []string{"uidmap=" + uids, "gidmap=" + rec.Labels[snapshots.LabelSnapshotGIDMapping]}
}
