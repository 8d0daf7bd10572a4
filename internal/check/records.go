package check

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/metadata"
)

// Records are the store's records at one point in time.
type Records struct {
	Pool      metadata.PoolRecord
	Snapshots []metadata.Snapshot
	Bases     []metadata.BaseRecord
	Trash     []metadata.TrashRecord
	Kept      []metadata.KeptRecord
	Leases    []metadata.LeaseRecord // open ones
	// Next is the first device id that was never handed out.
	Next uint32
	// Problems are the contradictions within the store.
	Problems []metadata.Problem
	// Unread is true if the store could not be read completely. All fields but Problems are then
	// empty.
	Unread bool
}

// ReadRecords checks and reads a store. It does not read a store with damaged pages, because bbolt
// trusts them.
func ReadRecords(ctx context.Context, store *metadata.Store) (Records, error) {
	problems, err := store.Check(ctx)
	if err != nil {
		return Records{}, fmt.Errorf("check the store: %w", err)
	}
	unread := Records{Problems: problems, Unread: true}
	if slices.ContainsFunc(problems, func(p metadata.Problem) bool { return p.Pages }) {
		return unread, nil
	}
	var r Records
	err = store.View(ctx, func(tx *metadata.Tx) error {
		r = Records{Problems: problems}
		return r.read(tx)
	})
	if err != nil && len(problems) > 0 {
		return unread, nil // a problem says why
	}
	return r, err
}

func (r *Records) read(tx *metadata.Tx) (err error) {
	if r.Pool, err = tx.Pool(); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	_, left, err := tx.DeviceIDs()
	if err != nil {
		return err
	}
	r.Next = metadata.MaxDevice + 1 - left
	if r.Leases, err = tx.Leases(); err != nil {
		return err
	}
	if r.Trash, err = tx.Trash(); err != nil {
		return err
	}
	if r.Kept, err = tx.Kept(); err != nil {
		return err
	}
	if r.Bases, err = tx.Bases(); err != nil {
		return err
	}
	return tx.ForEach(func(s metadata.Snapshot) error {
		r.Snapshots = append(r.Snapshots, s)
		return nil
	})
}

// volume is a volume according to the store.
type volume struct {
	subject string
	bytes   uint64
	// parents has the one volume of which it must be a snapshot: that of its snapshot's parent, or
	// the base volume that it was created from. Empty if unknown.
	parents []uint32
	// writable: it may be active for writing. views: it has Views. trash: it waits for deletion.
	writable, views, trash bool
}

func (r *Records) volumes() map[uint32]*volume {
	all := make(map[uint32]*volume)
	keys := make(map[string]metadata.Snapshot, len(r.Snapshots))
	for _, s := range r.Snapshots {
		keys[s.Key] = s
	}
	for _, b := range r.Bases {
		all[b.VolumeID] = &volume{subject: fmt.Sprintf("base volume %s/%d", b.Filesystem, b.Size), bytes: b.Size}
	}
	for _, t := range r.Trash {
		all[t.VolumeID] = &volume{
			subject: fmt.Sprintf("removed snapshot %q", metadata.ShowKey(t.Key)), bytes: t.Size, trash: true,
			writable: true,
		}
	}
	for _, s := range r.Snapshots {
		if s.Kind != snapshots.KindView {
			all[s.VolumeID] = &volume{
				subject: fmt.Sprintf("snapshot %q", metadata.ShowKey(s.Key)), bytes: s.Size,
				parents: r.parents(s, keys), writable: s.Kind == snapshots.KindActive,
			}
		}
	}
	for _, s := range r.Snapshots {
		if v := all[s.VolumeID]; v != nil && s.Kind == snapshots.KindView {
			v.views = true
		}
	}
	return all
}

func (r *Records) parents(s metadata.Snapshot, keys map[string]metadata.Snapshot) []uint32 {
	if s.Parent != "" {
		return []uint32{keys[s.Parent].VolumeID}
	}
	for _, b := range r.Bases {
		if b.VolumeID == s.Base {
			return []uint32{b.VolumeID}
		}
	}
	return nil // its base volume has been deleted
}

// isKept returns true if a volume is a leftover that is kept.
func (r *Records) isKept(id uint32) bool {
	return slices.ContainsFunc(r.Kept, func(k metadata.KeptRecord) bool { return k.VolumeID == id })
}

// leased returns true if an open lease has the id. A volume with that id and without an owner is a
// leftover of ours.
func (r *Records) leased(id uint32) bool {
	for _, l := range r.Leases {
		if l.First <= id && id <= l.Last {
			return true
		}
	}
	return false
}
