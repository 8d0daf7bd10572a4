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

// LabelSize sets the size of a snapshot and of its file system at Prepare, with
// a unit, as in "20GiB". It has the prefix without which containerd does not
// hand a label on. containerd's own snapshots.LabelSnapshotMaxSize does the same
// with a plain number of bytes; only one of the two may be given.
const LabelSize = "containerd.io/snapshot/thinsnap/size"

// sizeUnit is what sizes are rounded up to: the largest block of ext4 and xfs.
const sizeUnit = 4096

// maxLabelBytes is how long the names and values of one snapshot's labels may be
// together: many times what a client has use for, and little enough that it can
// be sent to any (gRPC's default is to read no more than 4 MiB at once).
const maxLabelBytes = 1 << 20

// options is what the labels given with a new snapshot ask for.
type options struct {
	labels map[string]string
	// bytes is the size that was asked for, or 0.
	bytes uint64
}

func parseOptions(opts []snapshots.Opt) (options, error) {
	var info snapshots.Info
	for _, opt := range opts {
		if err := opt(&info); err != nil {
			return options{}, err
		}
	}
	o := options{labels: stored(info.Labels)}
	if err := checkLabels(o.labels); err != nil {
		return options{}, err
	}
	var err error
	if o.bytes, err = sizeLabel(o.labels); err != nil {
		return options{}, err
	}
	return o, nil
}

// stored returns labels as they are stored: containerd takes an empty value for
// a label that is not there.
func stored(labels map[string]string) map[string]string {
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
		return 0, fmt.Errorf("labels %s and %s both ask for a size: %w", snapshots.LabelSnapshotMaxSize, LabelSize, errdefs.ErrInvalidArgument)
	case ours != "":
		bytes, err = units.RAMInBytes(ours)
	default:
		bytes, err = strconv.ParseInt(maxSize, 10, 64)
	}
	if err != nil || bytes <= 0 || bytes > math.MaxInt64-sizeUnit {
		return 0, fmt.Errorf("%q is no size for a snapshot: %w", maxSize+ours, errdefs.ErrInvalidArgument)
	}
	return (uint64(bytes) + sizeUnit - 1) / sizeUnit * sizeUnit, nil
}

// checkLabels refuses labels that cannot be kept, or would become other mount
// options than mappings of numbers. It is for every way by which labels get into
// the store.
func checkLabels(labels map[string]string) error {
	bytes := 0
	for name, value := range labels {
		bytes += len(name) + len(value)
	}
	if bytes > maxLabelBytes {
		return fmt.Errorf("labels of %d bytes, of %d at most: %w", bytes, maxLabelBytes, errdefs.ErrInvalidArgument)
	}
	return checkIDMapping(labels)
}

// idMapping is a list of container:host:length, as containerd writes it.
var idMapping = regexp.MustCompile(`^\d+:\d+:\d+(,\d+:\d+:\d+)*$`)

func checkIDMapping(labels map[string]string) error {
	uids, gids := labels[snapshots.LabelSnapshotUIDMapping], labels[snapshots.LabelSnapshotGIDMapping]
	if uids == "" && gids == "" {
		return nil
	}
	if !idMapping.MatchString(uids) || !idMapping.MatchString(gids) {
		return fmt.Errorf("user ids %q and group ids %q are not both mapped as container:host:length: %w", uids, gids, errdefs.ErrInvalidArgument)
	}
	return nil
}
