// Package differ implements containerd's diff service for mounts of thinsnap's snapshots. It leaves
// all other mounts, and comparisons that it does not support, to containerd's next differ, the
// walking differ.
package differ

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	coreDiff "github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/internal/diff"
	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// maxRunning limits concurrent comparisons: each uses a processor for compression, and reads the
// changed blocks.
const maxRunning = 2

// turnWait limits the wait for other comparisons: one of a virtual machine's disk can take hours.
const turnWait = time.Minute

// errNoTurn is returned if other comparisons used up turnWait.
var errNoTurn = fmt.Errorf("waited %v for a turn: only %d comparisons of snapshots run at a time: try again later: %w",
	turnWait, maxRunning, errdefs.ErrUnavailable)

// Snapshots is the part of a snapshotter that a Differ uses.
type Snapshots interface {
	// FindMounted returns the key of the snapshot with this mount, or errdefs.ErrNotFound.
	FindMounted(ctx context.Context, m mount.Mount) (key string, err error)
	// Freeze returns the content of a snapshot at one moment.
	Freeze(ctx context.Context, key string) (*snapshotter.Frozen, error)
	// RequireWhole fails with errdefs.ErrDataLoss for a snapshot that may have lost writes, or whose
	// file system is damaged.
	RequireWhole(ctx context.Context, key string) error
}

// Pool reports the blocks in which two volumes differ.
type Pool interface {
	// Delta calls yield, in order, with the runs of blocks that two volumes map to different blocks
	// of the pool, or that only one of them maps.
	Delta(ctx context.Context, left, right thin.ID, yield func(thinmeta.Run) error) error
	// BlockBytes is the size of a block.
	BlockBytes() uint64
}

// Options are the operator's settings.
type Options struct {
	// MountOptions are added to all mounts: the kernel requires the same SELinux context for all
	// mounts of a device.
	MountOptions []string
	// Verify compares each layer with that of the walking differ before it is written.
	Verify bool
}

// Differ compares snapshots. It implements containerd's diff.Comparer.
type Differ struct {
	snapshots Snapshots
	pool      Pool
	connect   Connect
	options   Options
	turns     chan struct{}
	stats     counters
}

var _ coreDiff.Comparer = (*Differ)(nil)

// New returns a Differ that stores layers in the containerd of connect.
func New(snapshots Snapshots, pool Pool, connect Connect, options Options) *Differ {
	return &Differ{
		snapshots: snapshots, pool: pool, connect: connect, options: options, turns: make(chan struct{}, maxRunning),
	}
}

// List lists the changes from lower to upper, or all of upper if the key of lower is empty. changed
// counts the bytes in the runs of Pool.Delta; it is 0 without lower.
func (d *Differ) List(
	ctx context.Context, lowerKey, upperKey string,
) (listing diff.Listing, changed uint64, err error) {
	leave, err := d.enter(ctx)
	if err != nil {
		return listing, 0, err
	}
	defer leave()
	err = d.between(ctx, lowerKey, upperKey, func(s sides) error {
		listing, changed = s.listing, s.changed
		return nil
	})
	return listing, changed, err
}

// errNotOurs is returned for mounts that do not belong to this snapshotter.
var errNotOurs = fmt.Errorf("not mounts of thinsnap's snapshots: %w", errdefs.ErrNotImplemented)

// Compare writes the changes from lower to upper to containerd's content store, as an OCI layer,
// and returns its descriptor. If the mounts are not thinsnap's, the media type is not supported, or
// the comparison fails without writing new content, the error is errdefs.ErrNotImplemented:
// containerd then asks its next differ, which would not see lost writes. So an error of
// RequireWhole is returned instead; that and errors of FindMounted keep their class.
func (d *Differ) Compare(
	ctx context.Context, lower, upper []mount.Mount, opts ...coreDiff.Opt,
) (ocispec.Descriptor, error) {
	var config coreDiff.Config
	for _, opt := range opts {
		if err := opt(&config); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	lowerKey, upperKey, err := d.find(ctx, lower, upper)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	compress, err := compressionOf(&config)
	if err != nil {
		if lost := d.requireWhole(ctx, lowerKey, upperKey); lost != nil {
			err = d.fail(lowerKey, upperKey, lost)
		}
		return ocispec.Descriptor{}, err
	}
	ctx = log.WithLogger(ctx, log.G(ctx).WithFields(log.Fields{
		"lower": metadata.ShowKey(lowerKey), "upper": metadata.ShowKey(upperKey),
	}))
	leave, err := d.enter(ctx)
	if errors.Is(err, errNoTurn) {
		return ocispec.Descriptor{}, d.leaveToNext(ctx, lowerKey, upperKey, err)
	}
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer leave()
	descriptor, err := d.compare(ctx, lowerKey, upperKey, compress, config)
	var unwritten unwrittenError
	switch {
	case err == nil:
		return descriptor, nil
	case ctx.Err() != nil:
		d.stats.cancelled.Add(1)
		return ocispec.Descriptor{}, context.Cause(ctx)
	case errors.As(err, &unwritten) && !errors.Is(err, metadata.ErrWritesLost) && !errors.Is(err, snapshotter.ErrDamaged):
		return ocispec.Descriptor{}, d.leaveToNext(ctx, lowerKey, upperKey, err)
	default:
		return ocispec.Descriptor{}, d.fail(lowerKey, upperKey, err)
	}
}

func (d *Differ) fail(lowerKey, upperKey string, err error) error {
	d.stats.failed.Add(1)
	return fmt.Errorf("compare %q with %q: %w", metadata.ShowKey(upperKey), metadata.ShowKey(lowerKey), err)
}

// requireWhole fails if a snapshot may have lost writes or is damaged, or if that is unknown.
func (d *Differ) requireWhole(ctx context.Context, keys ...string) error {
	slices.Sort(keys)
	for _, key := range slices.Compact(keys) {
		if err := d.snapshots.RequireWhole(ctx, key); err != nil {
			return err
		}
	}
	return nil
}

// leaveToNext returns the error that leaves a comparison to containerd's next differ, unless a
// snapshot may have lost writes. It must match no other class: containerd asks its next differ only
// after ErrNotImplemented, and a gRPC status has the first class that an error matches.
func (d *Differ) leaveToNext(ctx context.Context, lowerKey, upperKey string, reason error) error {
	if err := d.requireWhole(ctx, lowerKey, upperKey); err != nil {
		return d.fail(lowerKey, upperKey, err)
	}
	d.stats.left.Add(1)
	log.G(ctx).WithError(reason).Warn("containerd's next differ compares these snapshots")
	return fmt.Errorf("compare %q with %q: %w: %s", metadata.ShowKey(upperKey), metadata.ShowKey(lowerKey),
		errdefs.ErrNotImplemented, metadata.ShowText(reason.Error()))
}

// unwrittenError is an error that left no new content in containerd's content store.
type unwrittenError struct{ error }

// Unwrap returns the error.
func (e unwrittenError) Unwrap() error { return e.error }

// compressionOf returns the compression of the wanted media type, and sets the default type.
func compressionOf(config *coreDiff.Config) (compression.Compression, error) {
	if config.MediaType == "" {
		config.MediaType = ocispec.MediaTypeImageLayerGzip
	}
	switch {
	case config.Compressor != nil: // a socket cannot transfer it
	case config.MediaType == ocispec.MediaTypeImageLayer:
		return compression.Uncompressed, nil
	case config.MediaType == ocispec.MediaTypeImageLayerGzip:
		return compression.Gzip, nil
	case config.MediaType == ocispec.MediaTypeImageLayerZstd:
		return compression.Zstd, nil
	}
	return compression.Unknown, fmt.Errorf("layers of media type %s: %w", config.MediaType, errdefs.ErrNotImplemented)
}

// find returns the keys of the snapshots with these mounts. Mounts that are not all thinsnap's are left
// to containerd's next differ, but not if one of the snapshots may have lost writes. An error of
// FindMounted is not errdefs.ErrNotImplemented, because the marks of lost writes cannot be read either.
func (d *Differ) find(ctx context.Context, lower, upper []mount.Mount) (lowerKey, upperKey string, err error) {
	// With a target, the compared root would be above the mount.
	ours := len(lower) == 1 && len(upper) == 1 && lower[0].Target == "" && upper[0].Target == ""
	var keys []string
	for _, m := range slices.Concat(lower, upper) {
		switch key, err := d.snapshots.FindMounted(ctx, m); {
		case errdefs.IsNotFound(err):
			ours = false
		case err != nil:
			return "", "", err
		default:
			keys = append(keys, key)
		}
	}
	if ours {
		return keys[0], keys[1], nil
	}
	if err := d.requireWhole(ctx, keys...); err != nil {
		d.stats.failed.Add(1)
		return "", "", err
	}
	return "", "", errNotOurs
}

// enter waits for a turn, at most for turnWait.
func (d *Differ) enter(ctx context.Context) (leave func(), err error) {
	limit := time.NewTimer(turnWait)
	defer limit.Stop()
	select {
	case d.turns <- struct{}{}:
		d.stats.running.Add(1)
		return func() {
			d.stats.running.Add(-1)
			<-d.turns
		}, nil
	case <-limit.C:
		return nil, errNoTurn
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// compare writes the layer, after enter.
func (d *Differ) compare(
	ctx context.Context, lowerKey, upperKey string, compress compression.Compression, config coreDiff.Config,
) (descriptor ocispec.Descriptor, err error) {
	started := time.Now()
	p, stop := d.watch(ctx)
	defer stop()
	err = d.between(ctx, lowerKey, upperKey, func(s sides) error {
		if d.options.Verify {
			if err := d.verify(ctx, s, &config); err != nil {
				return unwrittenError{err}
			}
		}
		store, err := d.open(ctx, upperKey)
		if err != nil {
			return unwrittenError{err}
		}
		defer store.release()
		descriptor, err = d.write(ctx, store, s, compress, config, p)
		if err == nil {
			d.stats.of(s.listing.Level).Add(1)
			log.G(ctx).WithFields(s.fields()).WithFields(log.Fields{
				"digest": descriptor.Digest, "bytes": descriptor.Size,
				"duration": time.Since(started).Round(time.Millisecond).String(),
			}).Info("compared snapshots")
		}
		return err
	})
	return descriptor, err
}
