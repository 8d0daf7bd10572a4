package builtin

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

// device is a record in containerd's format.
const device = `{"device_id":1,"size":4096,"name":"vg0-thin-snap-1","parent_name":"","state":4,"error":""}`

// TestReadRefusesWhatIsNotKnown: Read refuses each unknown item, and its error names the item.
func TestReadRefusesWhatIsNotKnown(t *testing.T) {
	const pool, layer = testPool + ".db", "moby/25/old"
	snapshot := func(tx *bolt.Tx) *bolt.Bucket {
		return tx.Bucket([]byte("v1")).Bucket([]byte("snapshots")).Bucket([]byte(layer))
	}
	put := func(key string, value ...byte) func(*bolt.Tx) error {
		return func(tx *bolt.Tx) error { return snapshot(tx).Put([]byte(key), value) }
	}
	putDevice := func(record string) func(*bolt.Tx) error {
		return func(tx *bolt.Tx) error {
			return tx.Bucket([]byte("devices")).Put([]byte("vg0-thin-snap-1"), []byte(record))
		}
	}
	putID := func(key string, value ...byte) func(*bolt.Tx) error {
		return func(tx *bolt.Tx) error { return tx.Bucket([]byte("device_ids")).Put([]byte(key), value) }
	}
	bucket := func(path ...string) func(*bolt.Tx) error {
		return func(tx *bolt.Tx) error {
			b := tx.Cursor().Bucket()
			for _, name := range path {
				var err error
				if b, err = b.CreateBucketIfNotExists([]byte(name)); err != nil {
					return err
				}
			}
			return nil
		}
	}
	for name, c := range map[string]struct {
		file string
		edit func(*bolt.Tx) error
		want string
	}{
		"a version": {metadataFile, bucket("v2"), `bucket "v2"`},
		"a bucket":  {metadataFile, bucket("v1", "ingests"), `bucket "v1/ingests"`},
		"a key":     {metadataFile, func(tx *bolt.Tx) error { return tx.Bucket([]byte("v1")).Put([]byte("version"), []byte{4}) }, `key "v1/version"`},
		"no snapshot": {metadataFile, func(tx *bolt.Tx) error {
			return tx.Bucket([]byte("v1")).Bucket([]byte("snapshots")).Put([]byte("x"), nil)
		}, `"x": it is not a bucket`},
		"a field":         {metadataFile, put("quota", 1), `"moby/25/old": field "quota"`},
		"a nested bucket": {metadataFile, bucket("v1", "snapshots", layer, "more"), `field "more"`},
		"no labels": {metadataFile, func(tx *bolt.Tx) error {
			return tx.Bucket([]byte("v1")).Bucket([]byte("snapshots")).Bucket([]byte("moby/24/\x00\xff")).DeleteBucket([]byte("labels"))
		}, ""},
		"a nested label":  {metadataFile, bucket("v1", "snapshots", "moby/24/\x00\xff", "labels", "x"), `field "labels": "x" is a bucket`},
		"an id of 0":      {metadataFile, put("id", 0), `field "id"`},
		"a short id":      {metadataFile, put("id", 0x80), `field "id"`},
		"a long id":       {metadataFile, put("id", 1, 1), `field "id"`},
		"no id":           {metadataFile, func(tx *bolt.Tx) error { return snapshot(tx).Delete([]byte("id")) }, `lacks the field "id"`},
		"a kind":          {metadataFile, put("kind", 4), `field "kind"`},
		"no kind":         {metadataFile, put("kind"), `field "kind"`},
		"an empty parent": {metadataFile, put("parent"), `field "parent"`},
		"a size":          {metadataFile, put("size", 1), `field "size"`},
		"a long size":     {metadataFile, put("size", 2, 2), `field "size"`},
		"inodes":          {metadataFile, put("inodes"), `field "inodes"`},
		"a time":          {metadataFile, put("createdat", 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), `field "createdat"`},
		"a short time":    {metadataFile, put("updatedat", 1), `field "updatedat"`},
		"a link": {metadataFile, func(tx *bolt.Tx) error {
			return tx.Bucket([]byte("v1")).Bucket([]byte("parents")).Put([]byte{1, 1, 1}, nil)
		}, "v1/parents"},
		"a short link":    {metadataFile, func(tx *bolt.Tx) error { return tx.Bucket([]byte("v1")).Bucket([]byte("parents")).Put([]byte{1}, nil) }, "v1/parents"},
		"a linked bucket": {metadataFile, bucket("v1", "parents", "x"), `v1/parents: "x": it is a bucket`},

		"a bucket of the pool": {pool, bucket("faulty_devices"), `bucket "faulty_devices"`},
		"a device's bucket":    {pool, bucket("devices", "x"), `devices: "x": it is a bucket`},
		"a device's field":     {pool, putDevice(`{"device_id":1,"size":4096,"name":"vg0-thin-snap-1","parent_name":"","state":4,"error":"","uuid":"x"}`), `"uuid"`},
		"no device's field":    {pool, putDevice(`{"device_id":1,"size":4096,"name":"vg0-thin-snap-1","parent_name":"","state":4}`), "lacks a field"},
		"no device":            {pool, putDevice("null"), "lacks a field"},
		"an empty device":      {pool, putDevice(""), "vg0-thin-snap-1"},
		"a device and more":    {pool, putDevice(device + "{"), "followed by other data"},
		"a device and a value": {pool, putDevice(device + " 1"), "followed by other data"},
		"a device's state":     {pool, putDevice(`{"device_id":1,"size":4096,"name":"vg0-thin-snap-1","parent_name":"","state":14,"error":""}`), "state is 14"},
		"a negative state":     {pool, putDevice(`{"device_id":1,"size":4096,"name":"vg0-thin-snap-1","parent_name":"","state":-1,"error":""}`), "state"},
		"a device's id":        {pool, putDevice(`{"device_id":16777216,"size":4096,"name":"vg0-thin-snap-1","parent_name":"","state":4,"error":""}`), "device id is 16777216"},
		"the device id 0":      {pool, putDevice(`{"device_id":0,"size":4096,"name":"vg0-thin-snap-1","parent_name":"","state":4,"error":""}`), "device id is 0"},
		"an id's state":        {pool, putID("7", 3), `device_ids: "7"`},
		"a long state":         {pool, putID("7", 1, 1), `device_ids: "7"`},
		"no number":            {pool, putID("x", 1), `device_ids: "x"`},
		"another number":       {pool, putID("07", 1), `device_ids: "07"`},
		"the id 0":             {pool, putID("0", 1), `device_ids: "0"`},
		"a large number":       {pool, putID("16777216", 1), `device_ids: "16777216"`},
		"an id's bucket":       {pool, bucket("device_ids", "x"), `device_ids: "x": it is a bucket`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := furnished(t)
			m.edit(c.file, c.edit)
			_, err := Read(t.Context(), m.dir, testPool)
			if c.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, errdefs.ErrNotImplemented)
			require.ErrorContains(t, err, filepath.Join(m.dir, c.file))
			require.ErrorContains(t, err, c.want)
		})
	}
}

// TestReadRefusesAnotherDatabase: each database is refused in the place of the other.
func TestReadRefusesAnotherDatabase(t *testing.T) {
	for _, file := range []string{metadataFile, testPool + ".db"} {
		m := furnished(t)
		m.close()
		other := m.bytes(map[string]string{metadataFile: testPool + ".db", testPool + ".db": metadataFile}[file])
		require.NoError(t, os.WriteFile(filepath.Join(m.dir, file), other, 0o600))
		_, err := Read(t.Context(), m.dir, testPool)
		require.ErrorIs(t, err, errdefs.ErrNotImplemented)
		require.ErrorContains(t, err, file)
	}
}

func TestReadOfDamagedRecords(t *testing.T) {
	for name, c := range map[string]struct {
		file string
		edit func(*bolt.Tx) error
	}{
		"another name": {testPool + ".db", func(tx *bolt.Tx) error {
			return tx.Bucket([]byte("devices")).Put([]byte("other"), []byte(device))
		}},
		"no ids":     {testPool + ".db", func(tx *bolt.Tx) error { return tx.DeleteBucket([]byte("device_ids")) }},
		"no devices": {testPool + ".db", func(tx *bolt.Tx) error { return tx.DeleteBucket([]byte("devices")) }},
		"no parents": {metadataFile, func(tx *bolt.Tx) error { return tx.Bucket([]byte("v1")).DeleteBucket([]byte("parents")) }},
	} {
		t.Run(name, func(t *testing.T) {
			m := furnished(t)
			m.edit(c.file, c.edit)
			_, err := Read(t.Context(), m.dir, testPool)
			require.ErrorIs(t, err, errdefs.ErrDataLoss)
			require.ErrorContains(t, err, filepath.Join(m.dir, c.file))
		})
	}
}

// TestReadOfKeysOutOfOrder: bbolt's cursor returns such keys, but its search does not find them.
func TestReadOfKeysOutOfOrder(t *testing.T) {
	m := furnished(t)
	var page uint64
	m.edit(testPool+".db", func(tx *bolt.Tx) error {
		page = uint64(tx.Bucket([]byte("devices")).RootPage())
		return nil
	})
	b := m.bytes(testPool + ".db")
	leaf := b[int(page)*os.Getpagesize():]
	element := leaf[16:] // flags, pos, ksize, vsize
	at := 16 + binary.NativeEndian.Uint32(element[4:])
	leaf[at] = 'z'
	leaf[int(at)+bytes.Index(leaf[at:], []byte(`"name":"v`))+len(`"name":"`)] = 'z'
	require.NoError(t, os.WriteFile(filepath.Join(m.dir, testPool+".db"), b, 0o600))
	_, err := Read(t.Context(), m.dir, testPool)
	require.ErrorIs(t, err, errdefs.ErrDataLoss)
	require.ErrorContains(t, err, `key "vg0-thin-snap-10" is not in order`)
}
