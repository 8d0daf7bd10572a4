package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/metadata"
)

// unpackOptions mount an ext4 without its journal (ext4(5)): a layer is written once and flushed
// once, at its Commit, instead of twice and six times. A crash in between loses nothing of value:
// containerd unpacks the layer again, under another key.
var unpackOptions = []string{"noload", "nobarrier"} //nolint:gochecknoglobals // a constant

// isUnpack tells whether containerd unpacks a layer into the snapshot. Before the key that
// containerd chose, there are a namespace and a number.
func isUnpack(rec metadata.Snapshot) bool {
	return rec.Kind == snapshots.KindActive && strings.HasPrefix(path.Base(rec.Key), snapshots.UnpackKeyPrefix+"-")
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
// the rest. Such a volume is active until its Commit or Remove, unless the machine has crashed. If
// it is active read-only, it was activated since, to be measured.
func (s *Snapshotter) requireUninterrupted(ctx context.Context, rec metadata.Snapshot) error {
	id := thin.ID(rec.VolumeID)
	if !isUnpack(rec) || rec.Filesystem != filesystem.Ext4 || s.volumes.wasCreatedHere(id) {
		return nil
	}
	vol, err := s.pool.Lookup(ctx, id)
	if errors.Is(err, devmapper.ErrNotFound) || err == nil && vol.ReadOnly {
		return fmt.Errorf("the machine crashed while a layer was being unpacked into it: remove it and unpack the "+
			"layer again: %w", errdefs.ErrFailedPrecondition)
	}
	return err
}
