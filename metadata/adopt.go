package metadata

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// An Adoption is the content of another snapshotter's store, and the pool that it uses.
type Adoption struct {
	// Pool is a complete pool in ModeExisting. Its Adopted lists 1 to MaxAdopted volumes of committed snapshots.
	Pool PoolRecord
	// Client is the containerd that used the snapshots. Its Number is 1, and Proxy is the name that it will use for
	// thinsnap. A non-empty Installation is recorded as told by it.
	Client ClientRecord
	// Snapshots may be in any order. They become Client's. Their volumes have ids from 1 to FirstInForeign-1.
	Snapshots []Snapshot
	// Kept are volumes of the other snapshotter that no snapshot needs, with ids in the same range.
	Kept []KeptRecord
}

// Adopt stores an adoption in an empty store; otherwise the error is FailedPrecondition. An inconsistent adoption is
// InvalidArgument, and the error names the record: the caller must then fail the transaction.
func (t *Tx) Adopt(a Adoption) error {
	if err := t.adopt(a); err != nil {
		return fmt.Errorf("adopt snapshots: %w", err)
	}
	return nil
}

func (t *Tx) adopt(a Adoption) error {
	if !t.isEmpty() {
		return fmt.Errorf("the store is not empty: %w", errdefs.ErrFailedPrecondition)
	}
	byKey := make(map[string]Snapshot, len(a.Snapshots))
	for _, s := range a.Snapshots {
		if _, twice := byKey[s.Key]; twice {
			return invalid("snapshot %q is listed twice", s.Key)
		}
		if err := checkAdopted(s); err != nil {
			return err
		}
		byKey[s.Key] = s
	}
	if err := checkAdoption(a, byKey); err != nil {
		return err
	}
	if err := t.SetPool(a.Pool); err != nil {
		return err
	}
	client := a.Client
	if client.Installation != "" {
		client = client.WithInstallation(client.Installation)
	}
	if err := t.SetClient("", client); err != nil {
		return err
	}
	if err := t.adoptSnapshots(byKey, a.Client.Number); err != nil {
		return err
	}
	for _, k := range a.Kept {
		if err := t.Keep(k); err != nil {
			return err
		}
	}
	return t.requireConsistent()
}

// isEmpty reports whether the store has no records except format and schema.
func (t *Tx) isEmpty() bool {
	for _, b := range t.buckets.all() {
		if *b.bucket == t.buckets.meta {
			continue
		}
		if k, _ := (*b.bucket).Cursor().First(); k != nil {
			return false
		}
	}
	c := t.buckets.meta.Cursor()
	for k, _ := c.First(); k != nil; k, _ = c.Next() {
		if string(k) != string(keyFormat) && string(k) != string(keySchema) {
			return false
		}
	}
	return true
}

// checkAdopted checks one snapshot alone. The checker compares it with the others.
func checkAdopted(s Snapshot) error {
	if err := CheckKey(s.Key); err != nil {
		return err
	}
	switch {
	case s.Kind != snapshots.KindActive && s.Kind != snapshots.KindView && s.Kind != snapshots.KindCommitted:
		return invalid("snapshot %q has kind %v", s.Key, s.Kind)
	case s.Key != ownKey(s.Key):
		return invalid("snapshot %q belongs to another client", s.Key)
	case s.Kind == snapshots.KindView && s.Parent == "":
		return invalid("view %q has no parent", s.Key)
	case s.VolumeID == 0 || s.VolumeID >= FirstInForeign:
		return invalid("snapshot %q has device %d, which is not within 1 to %d", s.Key, s.VolumeID, FirstInForeign-1)
	case s.Size == 0:
		return invalid("snapshot %q has no size", s.Key)
	case s.Filesystem == "" || len(s.Filesystem) > maxFilesystem:
		return invalid("snapshot %q has file system %q", s.Key, s.Filesystem)
	case s.Base != 0:
		return invalid("snapshot %q has a base volume", s.Key)
	}
	return nil
}

// checkAdoption checks the fields of an adoption other than its snapshots.
func checkAdoption(a Adoption, byKey map[string]Snapshot) error {
	adopted := a.Pool.Existing.Adopted
	switch {
	case a.Pool.Mode != ModeExisting || !a.Pool.Complete || a.Pool.BlockSize == 0:
		return invalid("pool %q is not a complete one in mode %q", a.Pool.Name, ModeExisting)
	case len(adopted) == 0 || len(adopted) > MaxAdopted:
		return invalid("pool %q is identified by %d volumes of committed snapshots, not by 1 to %d",
			a.Pool.Name, len(adopted), MaxAdopted)
	case a.Client.Number != 1 || a.Client.Proxy == "":
		return invalid("client with proxy name %q has number %d: it needs a proxy name and the number 1",
			a.Client.Proxy, a.Client.Number)
	}
	for i, v := range adopted {
		isSame := func(other AdoptedVolume) bool { return other.VolumeID == v.VolumeID }
		if v.UUID == "" || slices.ContainsFunc(adopted[:i], isSame) {
			return invalid("device %d identifies the pool twice, or without a UUID", v.VolumeID)
		}
		owned := false
		for _, s := range byKey {
			owned = owned || s.Kind == snapshots.KindCommitted && s.VolumeID == v.VolumeID && s.Filesystem == v.Filesystem
		}
		if !owned {
			return invalid("device %d (%s) identifies the pool, but belongs to no committed snapshot", v.VolumeID, v.Filesystem)
		}
	}
	for _, k := range a.Kept {
		if k.VolumeID == 0 || k.VolumeID >= FirstInForeign {
			return invalid("leftover device %d is not within 1 to %d", k.VolumeID, FirstInForeign-1)
		}
	}
	return nil
}

// adoptSnapshots writes the records and their indexes. It writes in key order, so that bbolt fills its pages.
func (t *Tx) adoptSnapshots(byKey map[string]Snapshot, client uint64) error {
	var count counters
	for _, key := range slices.Sorted(maps.Keys(byKey)) {
		s := byKey[key]
		s.Client, s.Labels = client, cloneLabels(s.Labels)
		*count.kind(s.Kind)++
		if err := t.put(t.buckets.snapshots, []byte(key), encodeSnapshot(s)); err != nil {
			return err
		}
		if s.Kind != snapshots.KindView {
			if err := t.setOwner(s.VolumeID, Owner{Kind: OwnerSnapshot, Key: key}); err != nil {
				return err
			}
		}
		if k := childKey(s, byKey[s.Parent]); k != nil {
			if err := t.put(t.buckets.children, k, nil); err != nil {
				return err
			}
		}
	}
	return t.setCounters(count)
}

// requireConsistent returns InvalidArgument if a check of the store finds a problem.
func (t *Tx) requireConsistent() error {
	c := &checker{ctx: context.Background(), tx: t}
	if err := c.run(); err != nil {
		return err
	}
	if len(c.problems) > 0 {
		return invalid("%v (%d problems)", c.problems[0], len(c.problems))
	}
	return nil
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

// A Witness is a volume that does not change. The UUID of its file system proves that a pool is the recorded one.
type Witness struct {
	VolumeID   uint32
	Size       uint64 // virtual size, in bytes
	Filesystem string
	UUID       string // of the file system
}

// Witness returns the base volume as a witness.
func (b BaseRecord) Witness() Witness {
	return Witness{VolumeID: b.VolumeID, Size: b.Size, Filesystem: b.Filesystem, UUID: b.UUID}
}

// AdoptedWitnesses returns the adopted volumes that identify the pool and still belong to committed snapshots, in the
// order of the pool's record. It returns none if no pool is recorded.
func (t *Tx) AdoptedWitnesses() ([]Witness, error) {
	pool, err := t.Pool()
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []Witness
	for _, v := range pool.Existing.Adopted {
		owner, owned := t.Owner(v.VolumeID)
		if !owned || owner.Kind != OwnerSnapshot {
			continue
		}
		s, err := t.Get(owner.Key)
		if err != nil {
			return nil, err
		}
		if s.Kind == snapshots.KindCommitted {
			all = append(all, Witness{VolumeID: v.VolumeID, Size: s.Size, Filesystem: v.Filesystem, UUID: v.UUID})
		}
	}
	return all, nil
}
