// Package bulk stands in for a machine with any number of snapshots. It has a full store, and a
// pool that accepts every device id and remembers only the active volumes. A measurement with them
// measures thinsnap alone.
package bulk

import (
	"context"
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/metadata"
)

// Numbers of the snapshots of one image.
const (
	Layers     = 10 // committed, in a chain
	Containers = 2  // active, on the last layer
	Image      = Layers + Containers
)

const (
	// BaseBytes is the size of every snapshot.
	BaseBytes = 10 << 30
	// BlockBytes is the block size of the pool.
	BlockBytes = 64 << 10

	// perUpdate is the number of snapshots that one transaction creates.
	perUpdate = 100 * Image
)

// Fill creates n snapshots in an empty store, and the record of their pool. Key returns their keys.
func Fill(ctx context.Context, store *metadata.Store, n int) error {
	created := time.Now().UTC()
	if err := store.Update(ctx, func(tx *metadata.Tx) error { return setUp(tx, created) }); err != nil {
		return fmt.Errorf("fill the store: %w", err)
	}
	for from := 0; from < n; from += perUpdate {
		if err := store.Update(ctx, func(tx *metadata.Tx) error {
			return makeSnapshots(tx, from, min(from+perUpdate, n), created)
		}); err != nil {
			return fmt.Errorf("fill the store with snapshots from %d on: %w", from, err)
		}
	}
	return nil
}

func setUp(tx *metadata.Tx, created time.Time) error {
	if err := tx.SetPool(metadata.PoolRecord{
		ID: "bulk", Mode: "loop", Name: "bulk", BlockSize: BlockBytes, Created: created, Complete: true,
	}); err != nil {
		return err
	}
	lease, err := tx.Lease(1)
	if err != nil {
		return err
	}
	if err := tx.SetBase(metadata.BaseRecord{
		Filesystem: filesystem.Ext4, Size: BaseBytes, VolumeID: lease.First, UUID: baseUUID, Created: created,
		MkfsOptions: filesystem.MkfsOptions(filesystem.Ext4, nil),
	}); err != nil {
		return err
	}
	return tx.CloseLease(lease.First)
}

// makeSnapshots creates the snapshots with an index of at least from and less than to.
func makeSnapshots(tx *metadata.Tx, from, to int, created time.Time) error {
	lease, err := tx.Lease(uint32(to - from))
	if err != nil {
		return err
	}
	for i := from; i < to; i++ {
		s := metadata.Snapshot{
			Key: Key(i), Parent: parent(i), Kind: snapshots.KindActive,
			Labels:  Labels(i, created),
			Created: created, Updated: created,
			VolumeID: lease.First + uint32(i-from), Size: BaseBytes, Filesystem: filesystem.Ext4,
		}
		if !isLayer(i) {
			if err := tx.Create(s); err != nil {
				return err
			}
			continue
		}
		name := s.Key
		s.Key = "extract-" + name
		if err := tx.Create(s); err != nil {
			return err
		}
		n := int64(i%Image + 1)
		usage := metadata.Usage{Bytes: n * 20 << 20, Inodes: n * 800, Own: 20 << 20, Exact: true}
		if _, err := tx.Commit(name, s.Key, metadata.CommitChange{Usage: usage, Labels: s.Labels, Now: created}); err != nil {
			return err
		}
	}
	return tx.CloseLease(lease.First)
}

func isLayer(i int) bool { return i%Image < Layers }

// parent returns the parent's key, or "" for the first layer of an image.
func parent(i int) string {
	switch i % Image {
	case 0:
		return ""
	case Layers + 1:
		return Key(i - 2)
	default:
		return Key(i - 1)
	}
}

// Key returns the key of the i-th snapshot, from 0, in containerd's form. It has the number of the
// snapshot, and the chain id of a layer or the id of a container.
func Key(i int) string {
	if isLayer(i) {
		return fmt.Sprintf("default/%d/%s", i, chainID(i))
	}
	return fmt.Sprintf("default/%d/%x", i, digest(i))
}

// TopLayer returns the key of the last layer of the i-th image, from 0.
func TopLayer(i int) string { return Key(i*Image + Layers - 1) }

// Labels returns the labels that containerd gives the i-th snapshot.
func Labels(i int, created time.Time) map[string]string {
	return map[string]string{
		"containerd.io/gc.root":                   created.Format(time.RFC3339),
		"containerd.io/snapshot.ref":              chainID(i),
		"containerd.io/snapshot/cri.layer-digest": chainID(-i),
	}
}

func chainID(i int) string { return fmt.Sprintf("sha256:%x", digest(i)) }

func digest(i int) [sha256.Size]byte { return sha256.Sum256(fmt.Append(nil, i)) }
