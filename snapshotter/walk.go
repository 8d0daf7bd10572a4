package snapshotter

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/metadata"
)

// walkPage is the number of records that one transaction reads. The transaction ends before the callback,
// which may be slow or use the snapshotter.
const walkPage = 256

// walkBytes is the total size of records at which a page ends: labels come from images, and have up to
// maxLabelBytes.
const walkBytes = 4 << 20

// Walk calls fn in key order for every snapshot that matches one of the filters, or for all snapshots
// without filters. Filters are containerd's, on name, parent, kind and labels. A page of records is
// consistent; a snapshot that is created or removed during the walk may be missing.
func (s *Snapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, fs ...string) error {
	filter, err := filters.ParseAll(fs...)
	if err != nil {
		return fmt.Errorf("walk snapshots: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return s.WalkRecords(ctx, func(rec metadata.Snapshot) error {
		if !filter.Match(adapt(rec)) {
			return nil
		}
		return fn(ctx, info(rec))
	})
}

// WalkRecords calls fn for every record in key order, outside a transaction.
func (s *Snapshotter) WalkRecords(ctx context.Context, fn func(metadata.Snapshot) error) error {
	return s.walk(ctx, metadata.Page{Records: walkPage, Bytes: walkBytes}, fn)
}

// WalkWithoutLabels is WalkRecords for records without labels, which it does not read.
func (s *Snapshotter) WalkWithoutLabels(ctx context.Context, fn func(metadata.Snapshot) error) error {
	return s.walk(ctx, metadata.Page{Records: walkPage, Bytes: walkBytes, NoLabels: true}, fn)
}

func (s *Snapshotter) walk(ctx context.Context, limit metadata.Page, fn func(metadata.Snapshot) error) error {
	for after := ""; ; {
		var page []metadata.Snapshot
		more := false
		err := s.store.View(ctx, func(tx *metadata.Tx) (err error) {
			page, more, err = tx.After(after, limit)
			return err
		})
		if err != nil {
			return fmt.Errorf("walk snapshots: %w", Classify(err))
		}
		for _, rec := range page {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := fn(rec); err != nil {
				return err
			}
		}
		if !more {
			return nil
		}
		after = page[len(page)-1].Key
	}
}

// adapt presents a record to filters as containerd's own snapshotters do.
func adapt(rec metadata.Snapshot) filters.Adaptor {
	return filters.AdapterFunc(func(path []string) (string, bool) {
		if len(path) == 0 {
			return "", false
		}
		switch path[0] {
		case "kind":
			switch rec.Kind {
			case snapshots.KindActive:
				return "active", true
			case snapshots.KindView:
				return "view", true
			case snapshots.KindCommitted:
				return "committed", true
			}
		case "name":
			return rec.Key, true
		case "parent":
			return rec.Parent, true
		case "labels":
			// The filter was split at dots, but names of labels contain dots.
			value, ok := rec.Labels[strings.Join(path[1:], ".")]
			return value, ok
		}
		return "", false
	})
}
