package builtin

import (
	"cmp"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/plugins/snapshots/devmapper"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"github.com/thinsnap/thinsnap/internal/dmtest/boltdamage"
)

// small returns the files of small databases.
func small(f *testing.F) [2][]byte {
	f.Helper()
	m := makeDatabases(f)
	m.layer("a/1/b", "", 1<<20, map[string]string{FilesystemLabel: "ext4"})
	m.prepare("a/2/c", "a/1/b", nil)
	m.remove("a/2/c", true)
	m.update(func(ctx context.Context) error { return m.create(ctx, snapshots.KindView, "a/3/v", "a/1/b", nil) })
	m.close()
	var files [2][]byte
	for i, name := range []string{metadataFile, testPool + ".db"} {
		files[i] = boltdamage.Small(f, filepath.Join(m.dir, name))
	}
	return files
}

func write(t *testing.T, dir string, files [2][]byte) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(dir, metadataFile), files[0], 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, testPool+".db"), files[1], 0o600))
}

// readAny reads databases with any content. Read must fail with a class, or return valid results.
func readAny(t *testing.T, dir string) (Databases, bool) {
	t.Helper()
	dbs, err := Read(t.Context(), dir, testPool)
	if err != nil {
		require.True(t, errdefs.IsNotImplemented(err) || errdefs.IsDataLoss(err) || errdefs.IsUnavailable(err), err)
		require.ErrorContains(t, err, dir)
		return dbs, false
	}
	keys := map[string]bool{"": true}
	for i, s := range dbs.Snapshots {
		require.True(t, i == 0 || dbs.Snapshots[i-1].Key < s.Key)
		require.NotEmpty(t, s.Key)
		require.NotZero(t, s.ID)
		require.GreaterOrEqual(t, s.Bytes, int64(0))
		require.Contains(t, []snapshots.Kind{snapshots.KindView, snapshots.KindActive, snapshots.KindCommitted}, s.Kind)
		keys[s.Key] = true
	}
	for i, d := range dbs.Devices {
		require.True(t, i == 0 || dbs.Devices[i-1].Name < d.Name)
		require.True(t, 0 < d.ID && d.ID <= maxDeviceID)
		require.LessOrEqual(t, d.State, StateFaulty)
	}
	for id, s := range dbs.IDs {
		require.True(t, 0 < id && id <= maxDeviceID)
		require.LessOrEqual(t, s, Faulty)
	}
	require.True(t, slices.IsSortedFunc(dbs.Problems, func(a, b Problem) int { return cmp.Compare(a.Subject, b.Subject) }))
	if len(dbs.Problems) > 0 {
		for _, p := range dbs.Problems {
			require.NotEmpty(t, p.Subject)
			require.NotEmpty(t, p.Text)
			require.True(t, keys[p.Key])
		}
		return dbs, true
	}
	// Without a problem, each snapshot has its own volume.
	volumes := make(map[uint32]bool)
	for _, s := range dbs.Snapshots {
		d, found := dbs.Device(s)
		require.True(t, found)
		require.False(t, volumes[d.ID])
		require.NotEqual(t, Free, dbs.IDs[d.ID])
		require.True(t, keys[s.Parent])
		volumes[d.ID] = true
	}
	return dbs, true
}

// FuzzDamage damages, with boltdamage.Damage, one of the files of small databases.
func FuzzDamage(f *testing.F) {
	whole := small(f)
	f.Add(uint8(0), []byte{}, uint32(0), false)
	f.Add(uint8(1), boltdamage.Patch(0, 1), uint32(4096), false)
	for file := range whole {
		for _, patch := range boltdamage.Patches(whole[file], 0xff) {
			f.Add(uint8(file), patch, uint32(0), true)
		}
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, which uint8, patch []byte, cut uint32, sums bool) {
		files := whole
		files[which%2] = boltdamage.Damage(files[which%2], patch, cut, sums)
		write(t, dir, files)
		readAny(t, dir)
	})
}

// FuzzRecords puts any records into intact files, and compares the result of Read with that of
// containerd's code. An edit is a byte for its bucket, the length of the key, the length of the
// value, the key and the value. A key of length 0 is that of an existing record.
func FuzzRecords(f *testing.F) {
	whole := small(f)
	edit := func(bucket byte, key, value string) []byte {
		return append([]byte{bucket, byte(len(key)), byte(len(value))}, key+value...)
	}
	f.Add([]byte{})
	for i, field := range []string{"id", "kind", "parent", "size", "inodes", "createdat", "updatedat", "labels", "x"} {
		for _, value := range []string{"", "\x00", "\x01", "\x03", "\x80\x01", "a/1/b", "\x01\x00\x00\x00\x0e\xd0\x00\x00\x00\x00\x00\x00\x00\xff\xff"} {
			f.Add(append(edit(byte(2+i%2), field, value), edit(1, "\x01\x00\x07", "a/9/z")...))
		}
	}
	f.Add(edit(4, "l", "v"))
	f.Add(edit(0, "key", ""))
	f.Add(edit(1, "\x01\x00\x02", ""))
	f.Add(edit(5, "", `{"device_id":1,"size":2,"name":"vg0-thin-snap-1","parent_name":"","state":13,"error":"x"}`))
	f.Add(edit(5, "vg0-thin-snap-4", `{"device_id":4,"size":18446744073709551615,"name":"vg0-thin-snap-4","parent_name":"vg0-thin-snap-1","state":0,"error":""}`))
	f.Add(edit(5, "", `{"DEVICE_ID":1,"device_id":2,"size":2,"name":"vg0-thin-snap-1","parent_name":"","state":1,"error":null}`))
	f.Add(edit(6, "3", "\x02"))
	f.Add(append(edit(6, "100", "\x00"), edit(6, "", "\x00")...))
	f.Add(edit(7, "v3", ""))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, edits []byte) {
		write(t, dir, whole)
		for _, name := range []string{metadataFile, testPool + ".db"} {
			db, err := bolt.Open(filepath.Join(dir, name), 0, &bolt.Options{NoSync: true, NoGrowSync: true})
			require.NoError(t, err)
			_ = db.Update(func(tx *bolt.Tx) error {
				for b := edits; len(b) >= 3; {
					bucket, key, value := b[0], int(b[1]), int(b[2])
					if b = b[3:]; key+value > len(b) {
						break
					}
					apply(tx, bucket, b[:key], b[key:key+value])
					b = b[key+value:]
				}
				return nil
			})
			require.NoError(t, db.Close())
		}
		dbs, ok := readAny(t, dir)
		if ok {
			requireTheirs(t, dir, dbs)
		}
	})
}

// apply makes an edit, unless its bucket is in the other database.
func apply(tx *bolt.Tx, bucket byte, key, value []byte) {
	b := tx.Cursor().Bucket()
	for _, name := range [][]string{
		{"v1", "snapshots"}, {"v1", "parents"}, {"v1", "snapshots", "a/1/b"}, {"v1", "snapshots", "a/3/v"},
		{"v1", "snapshots", "a/1/b", "labels"}, {"devices"}, {"device_ids"}, {},
	}[bucket%8] {
		if b = b.Bucket([]byte(name)); b == nil {
			return
		}
	}
	if len(key) == 0 {
		key, _ = b.Cursor().First()
		key = slices.Clone(key)
	}
	if bucket%8 == 0 || bucket%8 == 7 {
		_, _ = b.CreateBucketIfNotExists(key)
		return
	}
	_ = b.Put(key, value)
}

// requireTheirs compares databases with the results of containerd's code.
func requireTheirs(t *testing.T, dir string, dbs Databases) {
	t.Helper()
	store, err := storage.NewMetaStore(filepath.Join(dir, metadataFile), func(o *bolt.Options) error {
		o.ReadOnly = true
		return nil
	})
	require.NoError(t, err)
	require.NoError(t, store.WithTransaction(t.Context(), false, func(ctx context.Context) error {
		ids, err := storage.IDMap(ctx)
		require.NoError(t, err)
		for _, s := range dbs.Snapshots {
			id, info, usage, err := storage.GetInfo(ctx, s.Key)
			require.NoError(t, err)
			require.Equal(t, strconv.FormatUint(s.ID, 10), id)
			require.Contains(t, ids, id)
			require.Equal(t, snapshots.Usage{Size: s.Bytes, Inodes: s.Inodes}, usage)
			require.True(t, s.Created.Equal(info.Created) && s.Updated.Equal(info.Updated))
			info.Created, info.Updated = s.Created, s.Updated
			if len(info.Labels) == 0 {
				info.Labels = nil
			}
			require.Equal(t, snapshots.Info{
				Kind: s.Kind, Name: s.Key, Parent: s.Parent, Labels: s.Labels, Created: s.Created, Updated: s.Updated,
			}, info)
		}
		return nil
	}))
	require.NoError(t, store.Close())

	db, err := bolt.Open(filepath.Join(dir, testPool+".db"), 0, &bolt.Options{ReadOnly: true})
	require.NoError(t, err)
	require.NoError(t, db.View(func(tx *bolt.Tx) error {
		for _, d := range dbs.Devices {
			var info devmapper.DeviceInfo
			require.NoError(t, json.Unmarshal(tx.Bucket([]byte("devices")).Get([]byte(d.Name)), &info))
			require.Equal(t, Device{
				Name: info.Name, ID: info.DeviceID, Bytes: info.Size, Parent: info.ParentName, State: State(info.State), Error: info.Error,
			}, d)
		}
		return nil
	}))
	require.NoError(t, db.Close())
}
