package differ

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/internal/diff"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// releaseTime limits each step of the cleanup after a comparison. A frozen copy that still exists
// then is deleted later.
const releaseTime = 10 * time.Second

// sides are the mounted volumes of two frozen snapshots, and their differences.
type sides struct {
	lower, upper diff.Volume
	changed      uint64 // bytes in the runs of Pool.Delta
	listing      diff.Listing
}

// fields describe a comparison in the log.
func (s *sides) fields() log.Fields {
	fields := log.Fields{
		"diff_level": string(s.listing.Level), "changed": s.changed, "changes": len(s.listing.Changes),
		"inodes": s.listing.Inodes, "paths": s.listing.Paths, "read": s.listing.Read,
	}
	if s.listing.Fallback != "" {
		fields["walked_because"] = s.listing.Fallback
	}
	return fields
}

// between freezes and compares two snapshots, and calls use while both are mounted. All errors
// except those of use are an unwrittenError.
func (d *Differ) between(ctx context.Context, lowerKey, upperKey string, use func(sides) error) error {
	var lower *snapshotter.Frozen
	if lowerKey != "" {
		var err error
		if lower, err = d.snapshots.Freeze(ctx, lowerKey); err != nil {
			return unwrittenError{err}
		}
		defer release(ctx, lower)
	}
	upper, err := d.snapshots.Freeze(ctx, upperKey)
	if err != nil {
		return unwrittenError{err}
	}
	defer release(ctx, upper)
	changed, err := d.changed(ctx, lower, upper)
	if err != nil {
		return unwrittenError{err}
	}
	var s sides
	for _, r := range changed {
		s.changed += r.Length
	}
	var used error
	err = d.mount(lower, func(volume diff.Volume) error {
		s.lower = volume
		return d.mount(upper, func(volume diff.Volume) (err error) {
			s.upper = volume
			if s.listing, err = diff.List(ctx, s.lower, s.upper, changed); err != nil {
				return err
			}
			d.stats.read.Add(s.listing.Read)
			d.stats.changed.Add(s.changed)
			used = use(s)
			return nil
		})
	})
	if err != nil {
		return unwrittenError{err}
	}
	return used
}

// release releases a side in the background: the layer does not depend on it.
func release(ctx context.Context, frozen *snapshotter.Frozen) {
	go func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTime)
		defer cancel()
		frozen.Release(ctx)
	}()
}

// changed returns the runs of Pool.Delta as ranges of bytes.
func (d *Differ) changed(ctx context.Context, lower, upper *snapshotter.Frozen) ([]diff.Range, error) {
	if lower == nil || lower.ID == upper.ID {
		return nil, nil
	}
	var ranges []diff.Range
	block := d.pool.BlockBytes()
	err := d.pool.Delta(ctx, lower.ID, upper.ID, func(run thinmeta.Run) error {
		ranges = append(ranges, diff.Range{
			Offset: run.Virtual * block, Length: run.Length * block, Lower: run.Left, Upper: run.Right,
		})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("compare the blocks of volumes %d and %d: %w", lower.ID, upper.ID, err)
	}
	return ranges, nil
}

// mount calls f with a volume whose read-only mount no other process sees, or with the zero Volume
// for nil.
func (d *Differ) mount(frozen *snapshotter.Frozen, f func(diff.Volume) error) error {
	if frozen == nil {
		return f(diff.Volume{})
	}
	device, err := os.Open(frozen.Path)
	if err != nil {
		return err
	}
	defer device.Close()
	return filesystem.ReadOnly(frozen.Path, frozen.Filesystem, func(root *os.File) error {
		return f(diff.Volume{
			Root:   fmt.Sprintf("/proc/self/fd/%d", root.Fd()),
			Device: device, Bytes: frozen.Bytes, Filesystem: frozen.Filesystem,
		})
	}, d.options.MountOptions...)
}
