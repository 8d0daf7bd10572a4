package builtin

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/plugins/snapshots/devmapper"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

// theirs returns the records that containerd reads from its databases.
func theirs(t testing.TB, m *made) (all []Snapshot, devices []Device) {
	t.Helper()
	m.view(func(ctx context.Context) error {
		err := storage.WalkInfo(ctx, func(_ context.Context, info snapshots.Info) error {
			id, info, usage, err := storage.GetInfo(ctx, info.Name)
			if err != nil {
				return err
			}
			n, err := strconv.ParseUint(id, 10, 64)
			all = append(all, Snapshot{
				Key: info.Name, ID: n, Kind: info.Kind, Parent: info.Parent, Bytes: usage.Size, Inodes: usage.Inodes,
				Created: info.Created, Updated: info.Updated, Labels: info.Labels,
			})
			return err
		})
		if errdefs.IsNotFound(err) {
			return nil // no snapshot was ever made
		}
		return err
	})
	require.NoError(t, m.pool.WalkDevices(t.Context(), func(d *devmapper.DeviceInfo) error {
		devices = append(devices, Device{
			Name: d.Name, ID: d.DeviceID, Bytes: d.Size, Parent: d.ParentName, State: State(d.State), Error: d.Error,
		})
		return nil
	}))
	return all, devices
}

func TestRead(t *testing.T) {
	m := furnished(t)
	snaps, devices := theirs(t, m)
	require.Len(t, snaps, 11)
	m.close()
	snapshotsBefore, devicesBefore := m.bytes(metadataFile), m.bytes(testPool+".db")
	dbs, err := Read(t.Context(), m.dir, testPool)
	require.NoError(t, err)
	require.True(t, bytes.Equal(snapshotsBefore, m.bytes(metadataFile)))
	require.True(t, bytes.Equal(devicesBefore, m.bytes(testPool+".db")))

	require.Equal(t, snaps, dbs.Snapshots)
	require.Equal(t, devices, dbs.Devices)
	require.Equal(t, testPool, dbs.Pool)
	require.Empty(t, dbs.Problems)
	require.EqualValues(t, 11, dbs.LastID)
	require.EqualValues(t, 11, dbs.LastDevice)
	require.Len(t, dbs.IDs, 11)

	byKey := make(map[string]Snapshot)
	for _, s := range dbs.Snapshots {
		byKey[s.Key] = s
		d, found := dbs.Device(s)
		require.True(t, found)
		require.Equal(t, testPool+"-snap-"+strconv.FormatUint(s.ID, 10), d.Name)
		require.EqualValues(t, 10*gib, d.Bytes)
		require.Equal(t, Taken, dbs.IDs[d.ID])
		if s.Kind == snapshots.KindCommitted {
			require.Equal(t, StateDeactivated, d.State)
		} else {
			require.Equal(t, StateActivated, d.State)
		}
	}
	container := byKey["k8s.io/20/container"]
	require.Equal(t, map[string]string{"app": "web", "containerd.io/gc.root": "now", FilesystemLabel: "ext4"}, container.Labels)
	require.Equal(t, "k8s.io/10/sha256:4", container.Parent)
	require.Equal(t, "ext4", byKey["default/22/view"].Filesystem())
	require.Equal(t, "xfs", byKey["moby/24/\x00\xff"].Filesystem())
	require.Equal(t, "ext4", byKey["moby/25/old"].Filesystem())
	require.EqualValues(t, 5<<20, byKey["k8s.io/10/sha256:4"].Bytes)
	_, found := dbs.Device(Snapshot{ID: 99})
	require.False(t, found)
}

// TestReadBeforeTheFirstSnapshot: containerd creates a bucket when it needs it.
func TestReadBeforeTheFirstSnapshot(t *testing.T) {
	m := makeDatabases(t)
	require.Equal(t, Databases{Pool: testPool, IDs: map[uint32]IDState{}}, m.read())

	// containerd may end between the creation of a file and that of its buckets.
	file := filepath.Join(m.dir, testPool+".db")
	require.NoError(t, os.Remove(file))
	db, err := bolt.Open(file, 0o600, nil)
	require.NoError(t, err)
	require.NoError(t, db.Close())
	require.Equal(t, Databases{Pool: testPool, IDs: map[uint32]IDState{}}, m.read())
}

// TestReadUsedIDs: device ids are used again, ids of snapshots are not.
func TestReadUsedIDs(t *testing.T) {
	m := makeDatabases(t)
	for i := range 12 {
		m.layer("ns/"+strconv.Itoa(i)+"/l", "", 1<<20, nil)
	}
	for _, i := range []int{1, 2, 9} { // with the device ids 2, 3 and 10
		m.remove("ns/"+strconv.Itoa(i)+"/l", false)
	}
	m.prepare("ns/20/c", "ns/0/l", nil)
	dbs := m.read()
	require.Empty(t, dbs.Problems)
	require.EqualValues(t, 13, dbs.LastID)
	require.EqualValues(t, 12, dbs.LastDevice)
	_, d := find(t, dbs, "ns/20/c")
	require.EqualValues(t, 10, d.ID, "the lowest decimal string first")
	require.Equal(t, Taken, dbs.IDs[10])
	require.Equal(t, Free, dbs.IDs[2])
	require.Equal(t, Free, dbs.IDs[3])
}

func TestReadRefusesNames(t *testing.T) {
	for _, pool := range []string{"", "metadata", "../x", "a/b", "a\x00"} {
		_, err := Read(t.Context(), t.TempDir(), pool)
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument, pool)
	}
}

func TestReadWithoutFiles(t *testing.T) {
	for _, missing := range []string{metadataFile, testPool + ".db"} {
		m := furnished(t)
		m.close()
		require.NoError(t, os.Remove(filepath.Join(m.dir, missing)))
		_, err := Read(t.Context(), m.dir, testPool)
		require.ErrorIs(t, err, errdefs.ErrNotFound)
		require.ErrorIs(t, err, os.ErrNotExist)
		require.ErrorContains(t, err, filepath.Join(m.dir, missing))
		require.ErrorContains(t, err, "root_path")
		require.NoFileExists(t, filepath.Join(m.dir, missing))
	}
}

func TestReadEndsWithItsContext(t *testing.T) {
	m := furnished(t)
	m.close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Read(ctx, m.dir, testPool)
	require.ErrorIs(t, err, context.Canceled)
}

// TestReadIsBounded: Read refuses files beyond the limits.
func TestReadIsBounded(t *testing.T) {
	m := furnished(t)
	m.close()
	for _, l := range []limits{{records: 10, text: 1 << 20}, {records: 100, text: 2000}} {
		_, err := read(t.Context(), m.dir, testPool, l)
		require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
		require.ErrorContains(t, err, m.dir)
	}
	_, err := read(t.Context(), m.dir, testPool, limits{records: 11, text: 1 << 20})
	require.NoError(t, err)
}

// TestStates compares the constants with those of containerd.
func TestStates(t *testing.T) {
	for s := StateCreating; s <= StateFaulty; s++ {
		require.Equal(t, devmapper.DeviceState(s).String(), s.String())
	}
	require.EqualValues(t, devmapper.Faulty, StateFaulty)
	require.Equal(t, "Unknown", StateUnknown.String())
	require.Equal(t, "unknown 14", State(14).String())
	require.Equal(t, "free taken faulty unknown 3", Free.String()+" "+Taken.String()+" "+Faulty.String()+" "+IDState(3).String())
}

// BenchmarkRead reads the databases of a large node.
func BenchmarkRead(b *testing.B) {
	const count = 10_000
	m := makeDatabases(b)
	m.layer("k8s.io/1/base", "", 1<<20, map[string]string{FilesystemLabel: "ext4"})
	m.update(func(ctx context.Context) error {
		for i := 1; i < count; i++ {
			_, err := storage.CreateSnapshot(ctx, snapshots.KindActive, "k8s.io/"+strconv.Itoa(i+1)+"/c", "k8s.io/1/base",
				snapshots.WithLabels(map[string]string{FilesystemLabel: "ext4", "containerd.io/snapshot.ref": "x"}))
			if err != nil {
				return err
			}
		}
		return nil
	})
	m.edit(testPool+".db", func(tx *bolt.Tx) error {
		ids := tx.Bucket([]byte("device_ids"))
		for i := 2; i <= count; i++ {
			id, name := strconv.Itoa(i), testPool+"-snap-"+strconv.Itoa(i)
			err := errors.Join(ids.Put([]byte(id), []byte{1}), tx.Bucket([]byte("devices")).Put([]byte(name), []byte(
				`{"device_id":`+id+`,"size":1,"name":"`+name+`","parent_name":"`+testPool+`-snap-1","state":4,"error":""}`)))
			if err != nil {
				return err
			}
		}
		return ids.SetSequence(count)
	})
	for b.Loop() {
		dbs, err := Read(b.Context(), m.dir, testPool)
		require.NoError(b, err)
		require.Len(b, dbs.Snapshots, count)
		require.Empty(b, dbs.Problems)
	}
}
