package snapshotter

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// currentMounts returns how an active snapshot is mounted that may be mounted
// already. What makes an image of a container's changes, as `nerdctl commit` does,
// asks for the mounts of a container that runs, and mounts them read-only; the
// kernel does not mount one device both ways, but it binds a mount both ways. So
// the answer is then a bind of a mount of our own, which stays until the snapshot
// is committed or removed: whoever got the answer may be slow to use it.
func (s *Snapshotter) currentMounts(ctx context.Context, rec metadata.Snapshot, vol pool.Volume) []mount.Mount {
	if vol.OpenCount == 0 || !s.fs.Mounted(vol.Path, rec.Filesystem) {
		return s.mounts(rec, vol.Path)
	}
	dir := s.shareDir(vol.ID)
	if err := s.fs.Share(vol.Path, rec.Filesystem, dir); err != nil {
		// It may be mounted read-only; then so it can be mounted from the device.
		log.G(ctx).WithField("device", vol.Path).WithError(err).Warn("a mounted snapshot cannot be bound")
		return s.mounts(rec, vol.Path)
	}
	// gofail: var afterShare struct{}
	opts := append([]string{"rbind", "rw"}, idMappingOptions(rec)...)
	return []mount.Mount{{Type: "bind", Source: dir, Options: opts}}
}

// unshare gives up our own mount of a volume, if there is one.
func (s *Snapshotter) unshare(id thin.ID) error {
	if err := s.fs.Unshare(s.shareDir(id)); err != nil {
		return fmt.Errorf("give up the mount of volume %d: %w", id, err)
	}
	return nil
}

func (s *Snapshotter) shareDir(id thin.ID) string {
	return filepath.Join(s.config.MountDir, strconv.FormatUint(uint64(id), 10))
}

// Mounts returns how an active snapshot or a View is mounted. After a restart of
// the machine this is what activates its volume.
func (s *Snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	mounts, err := bounded(ctx, s, func(ctx context.Context) ([]mount.Mount, error) { return s.mountsOf(ctx, key) })
	if err != nil {
		return nil, fmt.Errorf("mounts of snapshot %q: %w", key, s.explained(err))
	}
	return mounts, nil
}

func (s *Snapshotter) mountsOf(ctx context.Context, key string) ([]mount.Mount, error) {
	var rec metadata.Snapshot
	unlock, err := s.lockVolumeOf(ctx, func() (_ metadata.Snapshot, err error) {
		if rec, err = s.get(ctx, key); err == nil && rec.Kind == snapshots.KindCommitted {
			err = fmt.Errorf("it is committed: make a View of it: %w", errdefs.ErrFailedPrecondition)
		}
		return rec, err
	})
	if err != nil {
		return nil, err
	}
	defer unlock()
	s.working(ctx, thin.ID(rec.Device))
	if err := s.interrupted(ctx, rec); err != nil {
		return nil, err
	}
	vol, err := s.volumes.useLocked(ctx, thin.ID(rec.Device), rec.Size, rec.Kind == snapshots.KindView)
	if err != nil {
		return nil, err
	}
	// gofail: var afterActivateToMount struct{}
	if rec.Kind == snapshots.KindView {
		return s.mounts(rec, vol.Path), nil
	}
	return s.currentMounts(ctx, rec, vol), nil
}

// mounts returns how the snapshot on the device at path is mounted.
func (s *Snapshotter) mounts(rec metadata.Snapshot, path string) []mount.Mount {
	var opts []string
	if rec.Kind == snapshots.KindView {
		opts = append(opts, "ro")
	} else {
		opts = append(opts, "rw")
	}
	if rec.Filesystem == filesystem.XFS {
		// Every snapshot of one base volume carries the same UUID.
		opts = append(opts, "nouuid")
	}
	if s.withoutJournal(rec) {
		opts = append(opts, unpackOptions...)
	}
	opts = append(opts, s.config.MountOptions...)
	opts = append(opts, idMappingOptions(rec)...)
	return []mount.Mount{{Type: rec.Filesystem, Source: path, Options: opts}}
}

// idMappingOptions are containerd's own: it makes an idmapped mount of them.
func idMappingOptions(rec metadata.Snapshot) []string {
	uids := rec.Labels[snapshots.LabelSnapshotUIDMapping]
	if uids == "" {
		return nil
	}
	return []string{"uidmap=" + uids, "gidmap=" + rec.Labels[snapshots.LabelSnapshotGIDMapping]}
}
