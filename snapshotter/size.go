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

// LabelSize sets the size of a snapshot and of its file system at Prepare. Its value is a number of bytes,
// or has a unit, such as "20GiB"; the limit is Config.MaxBytes. Only labels with the prefix
// "containerd.io/snapshot/" pass through containerd. LabelSize takes precedence over containerd's own
// snapshots.LabelSnapshotMaxSize, a number of bytes that is ignored where it cannot be applied.
const LabelSize = "containerd.io/snapshot/thinsnap/size"

// sizeUnit is the multiple, in bytes, to which sizes are rounded up: the usual block of ext4 and xfs.
const sizeUnit = 4096

// sizeRequest is the requested size of a snapshot.
type sizeRequest struct {
	// bytes is 0 without a request.
	bytes uint64
	// hint allows the size to be ignored.
	hint bool
}

// sizeLabels returns the size that the labels of a new snapshot request.
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

// containerBytes is the default size in bytes of a container created from an origin: at least
// Config.BaseBytes, which may have been raised since the origin was created.
func (s *Snapshotter) containerBytes(from origin) uint64 { return max(from.bytes, s.config.BaseBytes) }

// chooseSize returns the requested size in bytes, or else the default. A request below least, the size of
// the parent or of the smallest file system, is errdefs.ErrInvalidArgument; a hint is ignored. A request
// above the limit gets the limit, so that a pod whose annotation requests too much still starts.
func (s *Snapshotter) chooseSize(ctx context.Context, want sizeRequest, least, byDefault uint64) (uint64, error) {
	limit := max(s.config.MaxBytes, byDefault)
	switch {
	case want.bytes == 0:
		return byDefault, nil
	case want.bytes > limit:
		log.G(ctx).WithField("requested", want.bytes).WithField("size", limit).
			Warn("a label requests a size above the limit, filesystem.max_size or a larger default: the snapshot gets the limit")
		return limit, nil
	case want.bytes >= least:
		return want.bytes, nil
	case want.hint:
		ignoreHint(ctx, strconv.FormatUint(want.bytes, 10), fmt.Sprintf("the minimum is %d bytes", least))
		return byDefault, nil
	}
	return 0, fmt.Errorf("requested size of %d bytes is less than %d bytes, the size of its parent or of the smallest "+
		"file system: %w", want.bytes, least, errdefs.ErrInvalidArgument)
}
