package snapshotter

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/log"

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
