package builtin

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"strconv"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/plugins/snapshots/devmapper"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

var errCrash = errors.New("containerd ends here")

// problems returns the problems of databases as texts, and their keys.
func problems(dbs Databases) (texts, keys []string) {
	for _, p := range dbs.Problems {
		texts, keys = append(texts, p.String()), append(keys, p.Key)
	}
	return texts, keys
}

// TestDeviceInEachState: Read returns the state of a snapshot's device. Only the state Removed
// contradicts the snapshot.
func TestDeviceInEachState(t *testing.T) {
	for s := StateUnknown; s <= StateFaulty; s++ {
		t.Run(s.String(), func(t *testing.T) {
			m := makeDatabases(t)
			m.prepare("ns/1/c", "", nil)
			_, name := m.id("ns/1/c")
			require.NoError(t, m.states(name, devmapper.DeviceState(s)))
			dbs := m.read()
			_, d := find(t, dbs, "ns/1/c")
			require.Equal(t, s, d.State)
			texts, keys := problems(dbs)
			if s != StateRemoved {
				require.Empty(t, texts)
				return
			}
			require.Equal(t, []string{`snapshot "ns/1/c": has the device "vg0-thin-snap-1", which is Removed: ` +
				`containerd would delete its volume, or has deleted it`}, texts)
			require.Equal(t, []string{"ns/1/c"}, keys)
		})
	}
}

// TestErrorOfADevice: after a failed operation, the state is that of its start.
func TestErrorOfADevice(t *testing.T) {
	m := makeDatabases(t)
	m.prepare("ns/1/c", "", nil)
	require.NoError(t, m.pool.UpdateDevice(t.Context(), testPool+"-snap-1", func(d *devmapper.DeviceInfo) error {
		d.State, d.Error = devmapper.Deactivating, "device or resource busy <\xff>"
		return nil
	}))
	dbs := m.read()
	_, d := find(t, dbs, "ns/1/c")
	require.Equal(t, StateDeactivating, d.State)
	require.Equal(t, "device or resource busy <\ufffd>", d.Error)
	require.Empty(t, dbs.Problems)
}

// TestAsyncRemoveLeftovers: a removed device without a snapshot is no contradiction.
func TestAsyncRemoveLeftovers(t *testing.T) {
	m := furnished(t)
	m.remove("k8s.io/20/container", true)
	m.remove("default/22/view", true)
	m.remove("default/21/sha256:5", true)
	dbs := m.read()
	require.Empty(t, dbs.Problems)
	require.Len(t, dbs.Snapshots, 8)
	removed := 0
	for _, d := range dbs.Devices {
		if d.State == StateRemoved {
			removed++
			require.Equal(t, Taken, dbs.IDs[d.ID])
		}
	}
	require.Equal(t, 3, removed)
}

// TestDeviceWithoutSnapshot: containerd ended between the two commits, and the name of the device
// stays taken (containerd issue 5646).
func TestDeviceWithoutSnapshot(t *testing.T) {
	m := furnished(t)
	create := func() error {
		return m.store.WithTransaction(t.Context(), true, func(ctx context.Context) error {
			if err := m.create(ctx, snapshots.KindActive, "k8s.io/30/c", "moby/25/old", nil); err != nil {
				return err
			}
			return errCrash
		})
	}
	require.ErrorIs(t, create(), errCrash)
	require.ErrorIs(t, create(), errdefs.ErrAlreadyExists, "the snapshot gets the same id again")
	dbs := m.read()
	require.EqualValues(t, 11, dbs.LastID)
	require.EqualValues(t, 12, dbs.LastDevice)
	texts, keys := problems(dbs)
	require.Equal(t, []string{`device "vg0-thin-snap-12": has no snapshot, and is Activated`}, texts)
	require.Equal(t, []string{""}, keys)
}

// TestFaultyDeviceWithoutSnapshot: containerd's start marked a device after a crash, and the next
// attempt took another device id.
func TestFaultyDeviceWithoutSnapshot(t *testing.T) {
	m := furnished(t)
	create := func(end error) error {
		return m.store.WithTransaction(t.Context(), true, func(ctx context.Context) error {
			return errors.Join(m.create(ctx, snapshots.KindActive, "k8s.io/30/c", "moby/25/old", nil), end)
		})
	}
	require.ErrorIs(t, create(errCrash), errCrash)
	require.NoError(t, m.pool.MarkFaulty(t.Context(), "vg0-thin-snap-12"))
	dbs := m.read()
	texts, _ := problems(dbs)
	require.Equal(t, []string{`device "vg0-thin-snap-12": has no snapshot, and is Faulty`}, texts)
	require.Equal(t, Faulty, dbs.IDs[12])

	m.open()
	require.NoError(t, create(nil))
	dbs = m.read()
	_, d := find(t, dbs, "k8s.io/30/c")
	require.EqualValues(t, 13, d.ID)
	require.Equal(t, Faulty, dbs.IDs[12])
	texts, _ = problems(dbs)
	require.Equal(t, []string{"device id 12: is faulty, but no device has it: the pool may have its volume"}, texts)
}

// TestFaultyDeviceWithSnapshot: containerd ended while it suspended a device. The data is intact.
func TestFaultyDeviceWithSnapshot(t *testing.T) {
	m := furnished(t)
	_, name := m.id("k8s.io/20/container")
	require.NoError(t, m.states(name, devmapper.Suspending))
	require.NoError(t, m.pool.MarkFaulty(t.Context(), name))
	dbs := m.read()
	_, d := find(t, dbs, "k8s.io/20/container")
	require.Equal(t, StateFaulty, d.State)
	require.Equal(t, Faulty, dbs.IDs[d.ID])
	require.Empty(t, dbs.Problems)
}

// TestSnapshotWithoutDevice: the device was removed, but the transaction of its snapshot was not
// committed.
func TestSnapshotWithoutDevice(t *testing.T) {
	m := furnished(t)
	_, name := m.id("moby/25/old")
	require.NoError(t, m.pool.RemoveDevice(t.Context(), name))
	dbs := m.read()
	texts, keys := problems(dbs)
	require.Equal(t, []string{`snapshot "moby/25/old": has no device: "vg0-thin-snap-11" does not exist`}, texts)
	require.Equal(t, []string{"moby/25/old"}, keys)
	require.Equal(t, Free, dbs.IDs[11])
}

// TestSnapshotThatWasRebased: containerd's store can give a snapshot a parent at its commit. The
// volume does not have that parent's blocks.
func TestSnapshotThatWasRebased(t *testing.T) {
	m := furnished(t)
	m.prepare("ns/40/x", "", nil)
	m.update(func(ctx context.Context) error {
		_, err := storage.CommitActive(ctx, "ns/40/x", "ns/41/x", snapshots.Usage{}, snapshots.WithParent("moby/25/old"))
		return err
	})
	texts, _ := problems(m.read())
	require.Equal(t, []string{`snapshot "ns/41/x": has the parent "moby/25/old", but its device "vg0-thin-snap-12" is not a copy`}, texts)
}

// TestContradictions has the contradictions that containerd's code cannot make.
func TestContradictions(t *testing.T) {
	const pool = testPool + ".db"
	snaps := func(tx *bolt.Tx, key string) *bolt.Bucket {
		return tx.Bucket([]byte("v1")).Bucket([]byte("snapshots")).Bucket([]byte(key))
	}
	parents := func(tx *bolt.Tx) *bolt.Bucket { return tx.Bucket([]byte("v1")).Bucket([]byte("parents")) }
	pair := func(parent, child uint64) []byte {
		return binary.AppendUvarint(append(binary.AppendUvarint(nil, parent), 0), child)
	}
	putDevice := func(tx *bolt.Tx, d devmapper.DeviceInfo) error {
		b, err := json.Marshal(d)
		return errors.Join(err, tx.Bucket([]byte("devices")).Put([]byte(d.Name), b))
	}
	for name, c := range map[string]struct {
		file string
		edit func(*bolt.Tx) error
		want []string
	}{
		"an id twice": {metadataFile, func(tx *bolt.Tx) error { return snaps(tx, "moby/25/old").Put([]byte("id"), []byte{9}) }, []string{
			`device "vg0-thin-snap-11": has no snapshot, and is Deactivated`,
			`snapshot "moby/23/sha256:x": has the id 9, like snapshot "moby/25/old"`,
			`snapshot "moby/25/old": has the id 9, like snapshot "moby/23/sha256:x"`,
		}},
		"a sequence that is behind": {metadataFile, func(tx *bolt.Tx) error { return tx.Bucket([]byte("v1")).Bucket([]byte("snapshots")).SetSequence(10) }, []string{
			`snapshot "moby/25/old": has the id 11, which containerd would hand out again: the last one is 10`,
		}},
		"no parent": {metadataFile, func(tx *bolt.Tx) error { return snaps(tx, "moby/24/\x00\xff").Put([]byte("parent"), []byte("gone")) }, []string{
			`index entry 9/10: gives snapshot "moby/24/\x00\xff" the parent with the id 9, which is not its parent`,
			`snapshot "moby/24/\x00\xff": has the parent "gone", which does not exist`,
		}},
		"an active parent": {metadataFile, func(tx *bolt.Tx) error { return snaps(tx, "moby/23/sha256:x").Put([]byte("kind"), []byte{2}) }, []string{
			`snapshot "moby/24/\x00\xff": has the parent "moby/23/sha256:x", which is not committed`,
		}},
		"a cycle": {metadataFile, func(tx *bolt.Tx) error {
			if err := snaps(tx, "moby/23/sha256:x").Put([]byte("parent"), []byte("moby/25/old")); err != nil {
				return err
			}
			return snaps(tx, "moby/25/old").Put([]byte("parent"), []byte("moby/23/sha256:x"))
		}, []string{
			`snapshot "moby/23/sha256:x": has the parent "moby/25/old", but its device "vg0-thin-snap-9" is not a copy`,
			`snapshot "moby/23/sha256:x": is its own ancestor, or has an ancestor that is`,
			`snapshot "moby/23/sha256:x": is not in the index of the children of "moby/25/old", so containerd could remove that parent`,
			`snapshot "moby/24/\x00\xff": is its own ancestor, or has an ancestor that is`,
			`snapshot "moby/25/old": has the parent "moby/23/sha256:x", but its device "vg0-thin-snap-11" is not a copy`,
			`snapshot "moby/25/old": is its own ancestor, or has an ancestor that is`,
			`snapshot "moby/25/old": is not in the index of the children of "moby/23/sha256:x", so containerd could remove that parent`,
		}},
		"an index without a child": {metadataFile, func(tx *bolt.Tx) error { return parents(tx).Delete(pair(9, 10)) }, []string{
			`snapshot "moby/24/\x00\xff": is not in the index of the children of "moby/23/sha256:x", so containerd could remove that parent`,
		}},
		"an index with another name": {metadataFile, func(tx *bolt.Tx) error { return parents(tx).Put(pair(9, 10), []byte("x")) }, []string{
			`snapshot "moby/24/\x00\xff": is called "x" in the index of the children of "moby/23/sha256:x"`,
		}},
		"an index with a stranger": {metadataFile, func(tx *bolt.Tx) error { return parents(tx).Put(pair(300, 301), []byte("x")) }, []string{
			`index entry 300/301: gives snapshot "x" the parent with the id 300, which is not its parent`,
		}},
		"a device id twice": {pool, func(tx *bolt.Tx) error {
			return putDevice(tx, devmapper.DeviceInfo{Name: "vg0-thin-snap-11", DeviceID: 9, Size: 1, State: devmapper.Deactivated})
		}, []string{
			`device "vg0-thin-snap-11": has the device id 9, like device "vg0-thin-snap-9"`,
			`device "vg0-thin-snap-9": has the device id 9, like device "vg0-thin-snap-11"`,
			`device id 11: is taken, but no device has it: the pool may have its volume`,
		}},
		"a device id that is free": {pool, func(tx *bolt.Tx) error { return tx.Bucket([]byte("device_ids")).Put([]byte("9"), []byte{0}) }, []string{
			`device "vg0-thin-snap-9": has the device id 9, which is free: containerd would hand it out again`,
		}},
		"a device id that is missing": {pool, func(tx *bolt.Tx) error { return tx.Bucket([]byte("device_ids")).Delete([]byte("9")) }, []string{
			`device "vg0-thin-snap-9": has the device id 9, which has no state: containerd would hand it out again`,
		}},
		"a sequence of ids that is behind": {pool, func(tx *bolt.Tx) error { return tx.Bucket([]byte("device_ids")).SetSequence(10) }, []string{
			`device id 11: would be handed out again: the last one is 10`,
		}},
		"names": {pool, func(tx *bolt.Tx) error {
			all := []string{"other-snap-1", "vg0-thin-snap-", "vg0-thin-snap-0", "vg0-thin-snap-01", "vg0-thin-snap-x"}
			for i, name := range all {
				id := uint32(1000 + i)
				err := errors.Join(putDevice(tx, devmapper.DeviceInfo{Name: name, DeviceID: id, State: devmapper.Created}),
					tx.Bucket([]byte("device_ids")).Put([]byte(strconv.Itoa(int(id))), []byte{1}))
				if err != nil {
					return err
				}
			}
			return tx.Bucket([]byte("device_ids")).SetSequence(2000)
		}, []string{
			`device "other-snap-1": has a name that no snapshot's device in the pool "vg0-thin" can have`,
			`device "vg0-thin-snap-": has a name that no snapshot's device in the pool "vg0-thin" can have`,
			`device "vg0-thin-snap-0": has a name that no snapshot's device in the pool "vg0-thin" can have`,
			`device "vg0-thin-snap-01": has a name that no snapshot's device in the pool "vg0-thin" can have`,
			`device "vg0-thin-snap-x": has a name that no snapshot's device in the pool "vg0-thin" can have`,
		}},
		"another origin": {pool, func(tx *bolt.Tx) error {
			return putDevice(tx, devmapper.DeviceInfo{Name: "vg0-thin-snap-10", DeviceID: 10, Size: 1, ParentName: "vg0-thin-snap-1", State: devmapper.Activated})
		}, []string{
			`snapshot "moby/24/\x00\xff": has the parent "moby/23/sha256:x" with the device "vg0-thin-snap-9", but its device "vg0-thin-snap-10" is a copy of "vg0-thin-snap-1"`,
		}},
		"an origin without a parent": {pool, func(tx *bolt.Tx) error {
			return putDevice(tx, devmapper.DeviceInfo{Name: "vg0-thin-snap-11", DeviceID: 11, Size: 1, ParentName: "vg0-thin-snap-1", State: devmapper.Deactivated})
		}, []string{
			`snapshot "moby/25/old": has no parent, but its device "vg0-thin-snap-11" is a copy of "vg0-thin-snap-1"`,
		}},
	} {
		t.Run(name, func(t *testing.T) {
			m := furnished(t)
			m.edit(c.file, c.edit)
			texts, _ := problems(m.read())
			require.ElementsMatch(t, c.want, texts)
		})
	}
}
