package snapshotter

import (
	"context"
	"fmt"
	"maps"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/metadata"
)

// maxLabelBytes bounds the total length of the names and values of one snapshot's labels. It is below
// the default limit of a gRPC client for a message, 4 MiB.
const maxLabelBytes = 1 << 20

// labelsOfImages are ignored when a layer is unpacked: containerd takes them from the layer's annotations
// in an image's manifest, and all images with the layer share it.
//
//nolint:gochecknoglobals // a constant
var labelsOfImages = []string{
	LabelSize,
	snapshots.LabelSnapshotMaxSize,
	snapshots.LabelSnapshotUIDMapping,
	snapshots.LabelSnapshotGIDMapping,
	LabelFrom,
}

// options are the options of a new snapshot.
type options struct {
	labels map[string]string
	size   sizeRequest
	fork   string // a token of IssueFork, or ""
}

func parseOptions(ctx context.Context, key string, opts []snapshots.Opt) (options, error) {
	info, err := applyOptions(ctx, key, opts)
	if err != nil {
		return options{}, err
	}
	o := options{labels: storedLabels(info.Labels), fork: info.Labels[LabelFrom]}
	if _, has := info.Labels[LabelFrom]; has && o.fork == "" { // without a token the snapshot would not be a fork
		return options{}, fmt.Errorf("label %s: its token is empty: did the command that prints it fail?: %w", LabelFrom,
			errdefs.ErrInvalidArgument)
	}
	if err := checkLabels(o.labels); err != nil {
		return options{}, err
	}
	o.size, err = sizeLabels(ctx, o.labels)
	return o, err
}

// parseInfo returns the options of a Commit, with the labels to be stored.
func parseInfo(ctx context.Context, key string, opts []snapshots.Opt) (snapshots.Info, error) {
	info, err := applyOptions(ctx, key, opts)
	if err != nil {
		return info, err
	}
	info.Labels = storedLabels(info.Labels)
	return info, checkLabels(info.Labels)
}

// applyOptions returns the options with all labels; for an unpack, labelsOfImages are left out.
func applyOptions(ctx context.Context, key string, opts []snapshots.Opt) (snapshots.Info, error) {
	var info snapshots.Info
	for _, opt := range opts {
		if err := opt(&info); err != nil {
			return info, err
		}
	}
	if IsUnpackKey(key) {
		info.Labels = withoutLabelsOfImages(ctx, key, info.Labels)
	}
	return info, nil
}

func withoutLabelsOfImages(ctx context.Context, key string, labels map[string]string) map[string]string {
	labels = maps.Clone(labels)
	for _, name := range labelsOfImages {
		if value, has := labels[name]; has {
			if name == LabelFrom {
				value = "…" // the token may still be valid
			}
			log.G(ctx).WithField("key", metadata.ShowKey(key)).Warnf("ignoring label %s=%.64q: an image does not decide the "+
				"size, the owners or the origin of a layer", name, value)
			delete(labels, name)
		}
	}
	return labels
}

// storedLabels returns the labels to be stored. To containerd, an empty value means no label.
func storedLabels(labels map[string]string) map[string]string {
	labels = maps.Clone(labels)
	maps.DeleteFunc(labels, func(name, value string) bool { return value == "" || name == LabelFrom })
	if len(labels) == 0 {
		return nil
	}
	return labels
}

// checkLabels refuses labels that are too long, and id mappings that would add other mount options. Every
// operation that stores labels calls it.
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
