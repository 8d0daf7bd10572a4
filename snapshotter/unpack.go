package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
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

// IsUnpackKey tells whether a key is one that containerd 1.6 to 2.4 and BuildKit give to a snapshot
// into which they unpack a layer: NAMESPACE/NUMBER/ before snapshots.UnpackKeyFormat, that is
// "extract-", a unique part, a space and the layer's chain id. Clients choose their keys: a part of
// that form is not enough ("extract-logs" is a container).
func IsUnpackKey(key string) bool {
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
