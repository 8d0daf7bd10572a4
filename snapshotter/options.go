package snapshotter

import (
	"fmt"
	"maps"
	"math"
	"regexp"
	"strconv"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
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

// options are the labels of a new snapshot.
type options struct {
	labels map[string]string
	// bytes is the requested size, or 0.
	bytes uint64
}

func parseOptions(opts []snapshots.Opt) (options, error) {
	var info snapshots.Info
	for _, opt := range opts {
		if err := opt(&info); err != nil {
			return options{}, err
		}
	}
	o := options{labels: withoutEmpty(info.Labels)}
	if err := checkLabels(o.labels); err != nil {
		return options{}, err
	}
	var err error
	if o.bytes, err = sizeLabel(o.labels); err != nil {
		return options{}, err
	}
	return o, nil
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

// idMapping matches containerd's form of a list of container:host:length.
var idMapping = regexp.MustCompile(`^\d+:\d+:\d+(,\d+:\d+:\d+)*$`)

func checkIDMapping(labels map[string]string) error {
	uids, gids := labels[snapshots.LabelSnapshotUIDMapping], labels[snapshots.LabelSnapshotGIDMapping]
	if uids == "" && gids == "" {
		return nil
	}
	if !idMapping.MatchString(uids) || !idMapping.MatchString(gids) {
		return fmt.Errorf("user id mapping %q and group id mapping %q must both be of the form container:host:length: %w",
			uids, gids, errdefs.ErrInvalidArgument)
	}
	return nil
}
