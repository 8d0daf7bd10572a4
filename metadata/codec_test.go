package metadata

import (
	"encoding/binary"
	"encoding/hex"
	"math"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

func TestSnapshotRoundTrip(t *testing.T) {
	for name, s := range map[string]Snapshot{
		"least": {Key: "k", Kind: snapshots.KindView},
		"most": {
			Key: "k", Parent: "p\x00\xff", Kind: snapshots.KindCommitted, VolumeID: MaxDevice, Size: math.MaxUint64, Filesystem: "xfs",
			Labels:  map[string]string{"": "", "a": "\x00", "b": string(make([]byte, 4096))},
			Created: time.Unix(math.MaxInt32*100, 999_999_999).UTC(), Updated: time.Unix(-1, 1).UTC(),
			Usage: Usage{Bytes: math.MinInt64, Inodes: math.MaxInt64, Own: math.MaxInt64, Exact: true}, Base: 7, Client: 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := encodeSnapshot(s)
			got, err := decodeSnapshot("k", b)
			require.NoError(t, err)
			require.Equal(t, s, got)
			for n := range b {
				_, err := decodeSnapshot("k", b[:n])
				require.ErrorIs(t, err, errdefs.ErrDataLoss, "cut to %d bytes", n)
			}
			_, err = decodeSnapshot("k", append(b, 0))
			require.ErrorIs(t, err, errdefs.ErrDataLoss, "longer")
			for _, version := range []byte{0, recordVersion + 1} {
				b[0] = version
				_, err = decodeSnapshot("k", b)
				require.ErrorIs(t, err, errdefs.ErrDataLoss, "of version %d", version)
			}
		})
	}
}

// Fields that an older record lacks are zero.
func TestSnapshotsOfOlderVersions(t *testing.T) {
	want := active("k", "p", 7)
	want.Usage = Usage{Bytes: 4096, Inodes: 3}
	b := encodeSnapshot(want)
	for version, lacks := range map[byte]int{recordVersion: 0, 3: 0, 2: 2, 1: 4} {
		older := append([]byte{version}, b[1:len(b)-lacks]...)
		got, err := decodeSnapshot("k", older)
		require.NoError(t, err, "version %d", version)
		require.Equal(t, want, got)
	}
}

func TestTimeKeepsTheInstant(t *testing.T) {
	s := active("k", "", 1)
	s.Created = time.Now().In(time.FixedZone("elsewhere", -7200))
	got, err := decodeSnapshot("k", encodeSnapshot(s))
	require.NoError(t, err)
	require.True(t, s.Created.Equal(got.Created))
	require.Equal(t, time.UTC, got.Created.Location())
}

func TestEncodingIsCompact(t *testing.T) {
	require.LessOrEqual(t, len(encodeSnapshot(active("k", "", 1))), 40)
}

func TestDecodersRejectHugeCounts(t *testing.T) {
	huge := binary.AppendUvarint([]byte{recordVersion}, math.MaxUint64)
	for range 3 {
		d := newDecoder(huge)
		require.Empty(t, d.string())
		require.Error(t, d.finish())
		d = newDecoder(huge)
		require.Empty(t, d.labels())
		require.Error(t, d.finish())
		d = newDecoder(huge)
		require.Empty(t, d.strings())
		require.Error(t, d.finish())
	}
}

// This pins the format: a new mode's part goes last, and records of other modes leave it out.
func TestPoolRecordOnDisk(t *testing.T) {
	created := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	for _, pinned := range []struct {
		encoded, version3, version1 string
		record                      PoolRecord
	}{{
		"040169046c6f6f70016e80800407cad6b9950d0601022f64022f6d802001", "030169046c6f6f70016e80800407cad6b9950d0601022f64022f6d802001", "010169046c6f6f70016e80800407cad6b9950d0601022f64022f6d",
		PoolRecord{
			ID: "i", Mode: ModeLoop, Name: "n", BlockSize: 65536, TransactionID: 7, Created: created, Complete: true,
			Loop: LoopFiles{DataFile: "/d", MetadataFile: "/m", SectorBytes: 4096, Allocated: true},
		},
	}, {
		"0401690a6469726563742d6c766d016e80800400cad6b9950d060000000000062f6465762f7801700176016c5f01", "0301690a6469726563742d6c766d016e80800400cad6b9950d060000000000062f6465762f7801700176016c5f01",
		"0101690a6469726563742d6c766d016e80800400cad6b9950d06000000062f6465762f7801700176016c5f01",
		PoolRecord{
			ID: "i", Mode: ModeDirectLVM, Name: "n", BlockSize: 65536, Created: created,
			LVM: LVMPool{Disk: "/dev/x", PVUUID: "p", VGUUID: "v", LVUUID: "l", DataPercent: 95, MetadataPercent: 1},
		},
	}, {
		"040169086578697374696e67016e80800400cad6b9950d0601000000000000000000000476672d70017500", "030169086578697374696e67016e80800400cad6b9950d0601000000000000000000000476672d700175",
		"010169086578697374696e67016e80800400cad6b9950d060100000000000000000476672d700175",
		PoolRecord{
			ID: "i", Mode: ModeExisting, Name: "n", BlockSize: 65536, Created: created, Complete: true,
			Existing: ExistingPool{MappedDevice: "vg-p", UUID: "u"},
		},
	}} {
		record := pinned.record
		require.Equal(t, pinned.encoded, hex.EncodeToString(encodePool(record)))
		decode := func(encoded string) PoolRecord {
			bytes, err := hex.DecodeString(encoded)
			require.NoError(t, err)
			decoded, err := decodePool(bytes)
			require.NoError(t, err)
			return decoded
		}
		require.Equal(t, record, decode(pinned.encoded))
		require.Equal(t, record, decode(pinned.version3))
		require.Equal(t, record.Mode == ModeExisting, record.Foreign())
		require.True(t, record.Identified())
		record.Loop.SectorBytes, record.Loop.Allocated = 0, false // new in version 2
		require.Equal(t, record, decode(pinned.version1))
	}
	adopted := someAdoption().Pool
	encoded := encodePool(adopted)
	require.Equal(t, "040170086578697374696e67016e80800400808d8f980d959aef3a010000000000000000000004706f6f6c00010304657874340175",
		hex.EncodeToString(encoded))
	decoded, err := decodePool(encoded)
	require.NoError(t, err)
	require.Equal(t, adopted, decoded)
	require.False(t, PoolRecord{Mode: ModeExisting, Existing: ExistingPool{MappedDevice: "vg-p"}}.Identified())
}
