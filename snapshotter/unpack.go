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

// unpackOptions mount an ext4 without its journal (ext4(5)): what is unpacked into
// a snapshot is written once and flushed once, when it is committed, instead of
// twice and six times over. A crash in between leaves nothing that could be used,
// and nothing is lost with it: whoever unpacks begins again, under another key.
var unpackOptions = []string{"noload", "nobarrier"} //nolint:gochecknoglobals // a constant

// unpackedOnce tells whether containerd has a snapshot made to unpack a layer into
// it. The key that it chose comes behind a name space and a number.
func unpackedOnce(rec metadata.Snapshot) bool {
	return rec.Kind == snapshots.KindActive && strings.HasPrefix(path.Base(rec.Key), snapshots.UnpackKeyPrefix+"-")
}

// withoutJournal tells whether a snapshot is mounted without the journal of its
// file system. Options that are about the journal ask for one.
func (s *Snapshotter) withoutJournal(rec metadata.Snapshot) bool {
	return unpackedOnce(rec) && rec.Filesystem == filesystem.Ext4 &&
		!slices.ContainsFunc(s.config.MountOptions, func(option string) bool {
			return strings.HasPrefix(option, "journal") || strings.HasPrefix(option, "data") || strings.HasPrefix(option, "commit")
		})
}

// interrupted returns an error for a snapshot that was being unpacked into when the
// machine went down. What is on it then nobody can tell: without barriers even the
// superblock of an unmounted file system may be newer than the rest. But a volume
// that stands for such a snapshot is active until it is committed or removed, and
// nothing but the end of the machine undoes that. One that is active read-only was
// activated to be measured since then.
func (s *Snapshotter) interrupted(ctx context.Context, rec metadata.Snapshot) error {
	id := thin.ID(rec.Device)
	if !unpackedOnce(rec) || rec.Filesystem != filesystem.Ext4 || s.volumes.isNew(id) {
		return nil
	}
	vol, err := s.pool.Lookup(ctx, id)
	if errors.Is(err, devmapper.ErrNotFound) || err == nil && vol.ReadOnly {
		return fmt.Errorf("the machine went down while it was being unpacked: remove it, and unpack the layer again: %w", errdefs.ErrFailedPrecondition)
	}
	return err
}
