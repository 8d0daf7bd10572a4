package metadata

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"github.com/thinsnap/thinsnap/internal/dmtest/boltdamage"
)

// roundTrip decodes a record and encodes it. The new bytes must decode to the same record, and its
// encoding must be the same bytes.
func roundTrip[T any](t *testing.T, b []byte, decode func([]byte) (T, error), encode func(T) []byte) {
	t.Helper()
	first, err := decode(b)
	if err != nil {
		return
	}
	canonical := encode(first)
	second, err := decode(canonical)
	require.NoError(t, err)
	require.Equal(t, first, second)
	require.Equal(t, canonical, encode(second))
	// Varints may be encoded longer than necessary, but never shorter. A record of an older version
	// has fewer fields.
	if b[0] == recordVersion {
		require.LessOrEqual(t, len(canonical), len(b))
	}
}

// On any bytes, a decoder does not panic, and its result survives a round trip.
func FuzzDecode(f *testing.F) {
	full := active("k", "parent", 7)
	full.Labels = map[string]string{"a": "b", "c": "d"}
	f.Add(encodeSnapshot(full))
	f.Add(encodeSnapshot(viewOf("k", "", 1)))
	f.Add(encodePool(PoolRecord{ID: "p", Mode: "loop", Created: noon, Complete: true}))
	f.Add(encodePool(PoolRecord{ID: "p", Mode: "direct-lvm", Created: noon, LVM: LVMPool{Disk: "/dev/sdx", DataPercent: 95}}))
	f.Add(encodePool(someAdoption().Pool))
	f.Add(encodeBase(ext4Base(3)))
	f.Add(encodeTrash(TrashRecord{VolumeID: 1, Key: "k", Since: noon}))
	f.Add(encodeOwner(Owner{OwnerSnapshot, "k"}))
	f.Add(encodeDevice(7))
	f.Add(encodeKept(KeptRecord{Mapped: 1 << 20, Size: 1 << 30, Found: noon}))
	f.Add(encodeClient(ClientRecord{
		Number: 2, Proxy: "thinsnap", PID: 7, Since: noon,
		Protections: []Protection{{Before: 1}, {Before: 2, Known: map[string]uint64{"a": 1, "b": 0}}},
	}))
	f.Fuzz(func(t *testing.T, b []byte) {
		roundTrip(t, b, func(b []byte) (Snapshot, error) { return decodeSnapshot("k", b) }, encodeSnapshot)
		roundTrip(t, b, decodePool, encodePool)
		roundTrip(t, b, decodeClient, encodeClient)
		base := baseKey("ext4", 1)
		roundTrip(t, b, func(b []byte) (BaseRecord, error) { return decodeBase(base, b) }, encodeBase)
		device := encodeDevice(9)
		roundTrip(t, b, func(b []byte) (TrashRecord, error) { return decodeTrash(device, b) }, encodeTrash)
		kept := keptKey(9)
		roundTrip(t, b, func(b []byte) (KeptRecord, error) { return decodeKept(kept, b) }, encodeKept)
		roundTrip(t, b, func(b []byte) (Owner, error) {
			o := decodeOwner(b)
			if o.Kind == OwnerUnknown {
				return o, errRecord
			}
			return o, nil
		}, encodeOwner)
		roundTrip(t, b, decodeDevice, encodeDevice)
		if r, err := decodeBase(b, encodeBase(ext4Base(3))); err == nil {
			require.Equal(t, b, baseKey(r.Filesystem, r.Size))
		}
		_, _ = decodeTrash(b, b)
		_, _ = decodeLease(b, b)
		_, _ = decodeKept(b, b)
	})
}

// A decoded record equals the encoded one.
func FuzzSnapshot(f *testing.F) {
	f.Add("k", "parent", uint8(1), uint32(7), uint64(10<<30), "ext4", "a", "b", int64(1), int64(2), int64(-3), int64(4))
	f.Add("\x00\xff", "", uint8(2), uint32(MaxDevice), uint64(1)<<63, "", "", "\n", int64(-1)<<63, int64(-1)<<40, int64(0), int64(1)<<62)
	f.Fuzz(func(t *testing.T, key, parent string, kind uint8, device uint32, size uint64, fs, label, value string,
		created, updated, bytes, inodes int64,
	) {
		s := Snapshot{
			Key: key, Parent: parent, Kind: snapshots.KindView + snapshots.Kind(kind%3), VolumeID: device % (MaxDevice + 1),
			Size: size, Filesystem: fs, Labels: map[string]string{label: value, label + "x": value},
			Created: time.Unix(created>>32, created&0x1fffffff).UTC(), Updated: time.Unix(updated, 1).UTC(),
			Usage: Usage{Bytes: bytes, Inodes: inodes, Own: bytes ^ inodes, Exact: kind%2 == 0},
		}
		got, err := decodeSnapshot(key, encodeSnapshot(s))
		require.NoError(t, err)
		require.Equal(t, s, got)
	})
}

// FuzzOpen damages the file of a small store with boltdamage.Damage. Open returns an error, or a
// store whose Check returns. If Check finds no problem, everything can be read.
func FuzzOpen(f *testing.F) {
	whole := small(f)
	f.Add([]byte{}, uint32(0), false)
	f.Add(boltdamage.Patch(0, 1), uint32(0), false)
	f.Add([]byte{}, uint32(4096), false)
	f.Add(boltdamage.Patch(0x2435, 'z'), uint32(0), false) // a bucket whose root is far beyond the end
	for _, patch := range boltdamage.Patches(whole, 0xff, 0) {
		f.Add(patch, uint32(0), true)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, patch []byte, cut uint32, sums bool) {
		b := boltdamage.Damage(whole, patch, cut, sums)
		path := filepath.Join(dir, "metadata.db")
		require.NoError(t, os.WriteFile(path, b, 0o600))
		s, err := Open(path, Options{ReadOnly: true})
		if err != nil {
			return
		}
		problems, err := s.Check(t.Context())
		require.NoError(t, err)
		if len(problems) == 0 {
			view(t, s, func(tx *Tx) { require.NoError(t, tx.ForEach(func(Snapshot) error { return nil })) })
		}
		require.NoError(t, s.Close())
	})
}

// small returns the file of a store with few records, without the space that bbolt allocates ahead.
func small(tb testing.TB) []byte {
	tb.Helper()
	s := furnished(tb)
	require.NoError(tb, s.Close())
	b, err := os.ReadFile(s.path)
	require.NoError(tb, err)
	db, err := bolt.Open(s.path, 0o600, &bolt.Options{ReadOnly: true})
	require.NoError(tb, err)
	require.NoError(tb, db.View(func(tx *bolt.Tx) error {
		b = b[:tx.Size()]
		return nil
	}))
	require.NoError(tb, db.Close())
	return b
}
