package snapshotter

import (
	"context"
	"fmt"
	"math"
	"strconv"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/docker/go-units"
)

// LabelSize sets the size of a snapshot and of its file system at Prepare, with a unit, as in
// "20GiB", up to Config.MaxBytes. containerd passes on only labels with this prefix. Its own
// snapshots.LabelSnapshotMaxSize does the same with a number of bytes, but it is a hint: where it
// cannot be followed, it is ignored. LabelSize counts if both are set.
const LabelSize = "containerd.io/snapshot/thinsnap/size"

// sizeUnit is the unit, in bytes, to which sizes are rounded up: the largest block of ext4 and xfs.
const sizeUnit = 4096

// sizeRequest is the size that a label asks for.
type sizeRequest struct {
	// bytes is 0 if no label asks for a size.
	bytes uint64
	// hint says that the size may be ignored.
	hint bool
}

// sizeLabels returns the size that the labels of a new snapshot ask for.
func sizeLabels(ctx context.Context, labels map[string]string) (sizeRequest, error) {
	ours, hint := labels[LabelSize], labels[snapshots.LabelSnapshotMaxSize]
	if ours != "" {
		if hint != "" {
			ignoreHint(ctx, hint, LabelSize+" is set")
		}
		n, err := units.RAMInBytes(ours)
		bytes, ok := roundUp(n)
		if err != nil || !ok {
			return sizeRequest{}, fmt.Errorf("label %s: %.64q is not a size: %w", LabelSize, ours, errdefs.ErrInvalidArgument)
		}
		return sizeRequest{bytes: bytes}, nil
	}
	if hint == "" {
		return sizeRequest{}, nil
	}
	n, err := strconv.ParseInt(hint, 10, 64)
	if bytes, ok := roundUp(n); err == nil && ok {
		return sizeRequest{bytes: bytes, hint: true}, nil
	}
	ignoreHint(ctx, hint, "it is not a number of bytes")
	return sizeRequest{}, nil
}

func ignoreHint(ctx context.Context, value, reason string) {
	log.G(ctx).Warnf("ignoring label %s=%.64q: %s", snapshots.LabelSnapshotMaxSize, value, reason)
}

// roundUp rounds a positive number of bytes up to sizeUnit.
func roundUp(bytes int64) (uint64, bool) {
	if bytes <= 0 || bytes > math.MaxInt64-sizeUnit {
		return 0, false
	}
	return (uint64(bytes) + sizeUnit - 1) / sizeUnit * sizeUnit, true
}

// containerBytes is the size, in bytes, of a container that is created from an origin, unless a label
// asks for another: at least Config.BaseBytes, which may have been raised since the origin's time.
func (s *Snapshotter) containerBytes(from origin) uint64 { return max(from.bytes, s.config.BaseBytes) }

// chooseSize returns the size of a new snapshot, in bytes: what a label asks for, else the default.
// least is the size of its parent, or of the smallest file system. A size below it is
// errdefs.ErrInvalidArgument, or ignored if it is a hint. Instead of a size above Config.MaxBytes,
// MaxBytes is returned: a pod's annotations arrive as labels, too.
func (s *Snapshotter) chooseSize(ctx context.Context, want sizeRequest, least, byDefault uint64) (uint64, error) {
	limit := max(s.config.MaxBytes, byDefault)
	switch {
	case want.bytes == 0:
		return byDefault, nil
	case want.bytes > limit:
		log.G(ctx).WithField("requested", want.bytes).WithField("size", limit).
			Warn("a label asks for a size above filesystem.max_size: the snapshot gets max_size")
		return limit, nil
	case want.bytes >= least:
		return want.bytes, nil
	case want.hint:
		ignoreHint(ctx, strconv.FormatUint(want.bytes, 10), fmt.Sprintf("the least size is %d bytes", least))
		return byDefault, nil
	}
	return 0, fmt.Errorf("requested size of %d bytes is less than %d bytes, the size of its parent or of the smallest "+
		"file system: %w", want.bytes, least, errdefs.ErrInvalidArgument)
}
