package snapshotter

import (
	"context"
	"fmt"
	"maps"
	"math"
	"strconv"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/docker/go-units"
)

// LabelSize sets the size of a snapshot and of its file system at Prepare, with a unit, as in
// "20GiB". containerd passes on only labels with this prefix. containerd's own
// snapshots.LabelSnapshotMaxSize does the same with a number of bytes; only one of them may be set.
const LabelSize = "containerd.io/snapshot/thinsnap/size"

// sizeUnit is the unit, in bytes, to which sizes are rounded up: the largest block of ext4 and xfs.
const sizeUnit = 4096

// maxLabelBytes bounds the total length of the names and values of one snapshot's labels. It is
// less than the 4 MiB that a gRPC client reads at most, by default.
const maxLabelBytes = 1 << 20

// labelsOfImages are the labels that are ignored for a layer that is unpacked. containerd takes them
// from the annotations of the layer's descriptor in an image's manifest, and the layer is shared by
// all images that have it.
//
//nolint:gochecknoglobals // a constant
var labelsOfImages = []string{
	LabelSize,
	snapshots.LabelSnapshotMaxSize,
	snapshots.LabelSnapshotUIDMapping,
	snapshots.LabelSnapshotGIDMapping,
}

// options are the labels of a new snapshot.
type options struct {
	labels map[string]string
	// bytes is the requested size, or 0.
	bytes uint64
}

func parseOptions(ctx context.Context, key string, opts []snapshots.Opt) (options, error) {
	info, err := parseInfo(ctx, key, opts)
	if err != nil {
		return options{}, err
	}
	o := options{labels: info.Labels}
	if o.bytes, err = sizeLabel(o.labels); err != nil {
		return options{}, err
	}
	return o, nil
}

// parseInfo returns the options of a snapshot with the labels that are stored.
func parseInfo(ctx context.Context, key string, opts []snapshots.Opt) (snapshots.Info, error) {
	var info snapshots.Info
	for _, opt := range opts {
		if err := opt(&info); err != nil {
			return info, err
		}
	}
	if IsUnpackKey(key) {
		info.Labels = withoutLabelsOfImages(ctx, info.Labels)
	}
	info.Labels = withoutEmpty(info.Labels)
	return info, checkLabels(info.Labels)
}

func withoutLabelsOfImages(ctx context.Context, labels map[string]string) map[string]string {
	labels = maps.Clone(labels)
	for _, name := range labelsOfImages {
		if value, has := labels[name]; has {
			log.G(ctx).Warnf("ignoring label %s=%.64q: an image does not decide the size or the owners of a layer", name, value)
			delete(labels, name)
		}
	}
	return labels
}

// withoutEmpty returns the labels that are stored: to containerd, an empty value is no label.
func withoutEmpty(labels map[string]string) map[string]string {
	labels = maps.Clone(labels)
	maps.DeleteFunc(labels, func(_, value string) bool { return value == "" })
	if len(labels) == 0 {
		return nil
	}
	return labels
}

func sizeLabel(labels map[string]string) (uint64, error) {
	maxSize, ours := labels[snapshots.LabelSnapshotMaxSize], labels[LabelSize]
	var (
		bytes int64
		err   error
	)
	switch {
	case maxSize == "" && ours == "":
		return 0, nil
	case maxSize != "" && ours != "":
		return 0, fmt.Errorf("labels %s and %s both set a size: %w", snapshots.LabelSnapshotMaxSize, LabelSize,
			errdefs.ErrInvalidArgument)
	case ours != "":
		bytes, err = units.RAMInBytes(ours)
	default:
		bytes, err = strconv.ParseInt(maxSize, 10, 64)
	}
	if err != nil || bytes <= 0 || bytes > math.MaxInt64-sizeUnit {
		return 0, fmt.Errorf("%q is not a valid snapshot size: %w", maxSize+ours, errdefs.ErrInvalidArgument)
	}
	return (uint64(bytes) + sizeUnit - 1) / sizeUnit * sizeUnit, nil
}

// checkLabels refuses labels that are too long, or whose id mappings would add other mount options.
// Every operation that stores labels calls it.
func checkLabels(labels map[string]string) error {
	bytes := 0
	for name, value := range labels {
		bytes += len(name) + len(value)
	}
	if bytes > maxLabelBytes {
		return fmt.Errorf("labels of %d bytes exceed the maximum of %d: %w", bytes, maxLabelBytes, errdefs.ErrInvalidArgument)
	}
	return checkIDMapping(labels)
}
