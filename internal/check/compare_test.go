package check_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/internal/check"
	"github.com/thinsnap/thinsnap/metadata"
)

const blockBytes = 64 << 10

// contents is a pool's list of volumes with their mappings.
type contents map[uint32][]thinmeta.Mapping

func (contents) Superblock() thinmeta.Superblock {
	return thinmeta.Superblock{TransactionID: 3, DataBlockSectors: blockBytes / 512}
}

func (c contents) Devices(context.Context) iter.Seq2[thinmeta.Device, error] {
	return func(yield func(thinmeta.Device, error) bool) {
		for id := range c {
			if !yield(thinmeta.Device{ID: id, CreationTime: id - 1}, nil) {
				return
			}
		}
	}
}

func (c contents) Mappings(_ context.Context, id uint32) iter.Seq2[thinmeta.Mapping, error] {
	return func(yield func(thinmeta.Mapping, error) bool) {
		for _, m := range c[id] {
			if err := failing(m); err != nil {
				yield(m, err)
				return
			}
			if !yield(m, nil) {
				return
			}
		}
	}
}

func failing(m thinmeta.Mapping) error {
	switch m.Data {
	case 666:
		return errors.New("block 666: bad checksum")
	case 777:
		return fmt.Errorf("read: %w", pool.ErrMetadataShort)
	}
	return nil
}

// MappedBlocks is the number of different blocks.
func (c contents) MappedBlocks(context.Context) (uint64, error) {
	all := map[uint64]bool{}
	for _, mappings := range c {
		for _, m := range mappings {
			if err := failing(m); err != nil {
				return 0, err
			}
			all[m.Data] = true
		}
	}
	return uint64(len(all)), nil
}

// world is a base volume 1, a layer 2 on it, a container 3 on that, a View of the layer, and a
// removed snapshot 4.
func world() (check.Input, contents) {
	base := []thinmeta.Mapping{{Virtual: 0, Data: 10, Time: 0}}
	layer := []thinmeta.Mapping{{Virtual: 0, Data: 20, Time: 1}, {Virtual: 1, Data: 21, Time: 1}}
	c := contents{1: base, 2: layer, 3: append(slices.Clone(layer), thinmeta.Mapping{Virtual: 7, Data: 30, Time: 2}), 4: layer}
	return check.Input{
		Records: check.Records{
			Pool:  metadata.PoolRecord{Mode: "loop", TransactionID: 4, Complete: true},
			Bases: []metadata.BaseRecord{{Filesystem: "ext4", Size: 1 << 20, VolumeID: 1}},
			Snapshots: []metadata.Snapshot{
				{Key: "layer", Kind: snapshots.KindCommitted, VolumeID: 2, Size: 1 << 20, Filesystem: "ext4", Base: 1},
				{Key: "box", Parent: "layer", Kind: snapshots.KindActive, VolumeID: 3, Size: 1 << 20, Filesystem: "ext4"},
				{Key: "look", Parent: "layer", Kind: snapshots.KindView, VolumeID: 2, Size: 1 << 20, Filesystem: "ext4"},
			},
			Trash:  []metadata.TrashRecord{{VolumeID: 4, Key: "old", Size: 1 << 20, Since: time.Unix(1000, 0)}},
			Leases: []metadata.LeaseRecord{{First: 64, Last: 127}},
			Next:   128,
		},
		Contents: c,
		Status:   &pool.Status{PoolStatus: thin.PoolStatus{Mode: thin.ModeReadWrite}},
		Devices:  []pool.MappedDevice{device(2, true), device(3, false)},
		Mounts:   []string{"3"},
		Running:  true,
		Now:      time.Unix(1001, 0),
	}, c
}

func device(id thin.ID, readOnly bool) pool.MappedDevice {
	return pool.MappedDevice{
		Device: devmapper.Device{Live: true, ReadOnly: readOnly}, Volume: id, Shows: id, OnPool: true, Ours: true, Bytes: 1 << 20,
	}
}

func compare(t *testing.T, in check.Input) check.Report {
	t.Helper()
	r, err := check.Compare(t.Context(), in)
	require.NoError(t, err)
	return r
}

// TestCommitsDuringACheck: the store and the pool have changed since the records were read.
func TestCommitsDuringACheck(t *testing.T) {
	for records, after := range map[uint64]uint64{1: 3, 2: 4, 3: 3, 4: 9} {
		in, _ := world()
		in.Records.Pool.TransactionID, in.TransactionAfter = records, after
		require.Empty(t, compare(t, in).Findings, "%d, then %d", records, after)
	}
}

func TestNoDifferences(t *testing.T) {
	in, _ := world()
	in.DataUsed = new(uint64(4))
	r := compare(t, in)
	require.Empty(t, r.Findings)
	require.Len(t, r.Pending, 1)
	require.Equal(t, check.KindTrash, r.Pending[0].Kind)
	require.Equal(t, check.Examined{Snapshots: 3, Volumes: 4, Mappings: 8, Devices: 2}, r.Examined)
}

func TestFindings(t *testing.T) {
	for name, test := range map[string]struct {
		change func(in *check.Input, c contents)
		kind   check.Kind
		text   string
		device uint32
		repair bool
	}{
		"volume missing": {func(_ *check.Input, c contents) { delete(c, 3) }, check.KindMissing, "is not in the pool", 3, false},
		"unowned volume": {func(_ *check.Input, c contents) { c[5] = nil }, check.KindUnowned, "no record owns it", 5, false},
		"kept leftover": {func(in *check.Input, c contents) {
			c[5], in.Records.Kept = nil, []metadata.KeptRecord{{VolumeID: 5}}
		}, check.KindKept, "thinsnap leftovers", 5, false},
		"foreign volume":        {func(_ *check.Input, c contents) { c[900] = nil }, check.KindUnowned, "never used its id", 900, false},
		"another parent":        {func(_ *check.Input, c contents) { c[3][1].Data = 99 }, check.KindParent, "not a snapshot of its parent's volume 2", 3, false},
		"older than its parent": {func(_ *check.Input, c contents) { c[3][2].Time = 1 }, check.KindParent, "1 of its blocks", 3, false},
		"beyond its size":       {func(_ *check.Input, c contents) { c[3][2].Virtual = 16 }, check.KindSize, "up to byte 1114112", 3, false},
		"metadata damaged":      {func(_ *check.Input, c contents) { c[3][2].Data = 666 }, check.KindPool, "bad checksum", 0, false},
		"metadata nearly full": {func(in *check.Input, c contents) {
			c[3][2].Data, in.DataUsed = 777, new(uint64)
		}, check.KindPool, "extend its metadata, and run the check again", 0, false},
		"newer store": {func(in *check.Input, _ contents) { in.Records.Pool.TransactionID = 9 }, check.KindPool, "transaction id is 3", 0, false},
		"older store": {func(in *check.Input, _ contents) {
			in.Records.Pool.TransactionID, in.TransactionAfter = 1, 2
		}, check.KindPool, "transaction id is 3, but the store has 2", 0, false},
		"read-only pool":     {func(in *check.Input, _ contents) { in.Status.Mode = thin.ModeReadOnly }, check.KindPool, "read-only", 0, false},
		"pool to be checked": {func(in *check.Input, _ contents) { in.Status.NeedsCheck = true }, check.KindPool, "needs_check", 0, false},
		"full pool":          {func(in *check.Input, _ contents) { in.Status.Mode = thin.ModeOutOfDataSpace }, check.KindPool, "no space left", 0, false},
		"failed pool":        {func(in *check.Input, _ contents) { in.Status.Mode = thin.ModeFail }, check.KindPool, "failed: see dmesg", 0, false},
		"over-promised pool": {func(in *check.Input, _ contents) {
			in.Status.Data.Holes, in.Status.Data.DiskFree = 5<<30, 1<<30
		}, check.KindSpace, "4294967296 bytes", 0, false},
		"lost blocks":                    {func(in *check.Input, _ contents) { in.DataUsed = new(uint64(6)) }, check.KindBlocks, "131072 bytes of data count as used", 0, false},
		"used blocks that count as free": {func(in *check.Input, _ contents) { in.DataUsed = new(uint64(3)) }, check.KindPool, "65536 bytes of data count as free", 0, false},
		"store damaged": {func(in *check.Input, _ contents) {
			in.Records.Problems = []metadata.Problem{{Subject: "file", Text: "torn"}}
		}, check.KindStore, "torn", 0, false},
		"trash kept too long":     {func(in *check.Input, _ contents) { in.Now = time.Unix(5000, 0) }, check.KindTrash, "since 1970-01-01 00:16:40", 4, false},
		"suspended":               {func(in *check.Input, _ contents) { in.Devices[1].Suspended = true }, check.KindDevice, "is suspended", 3, true},
		"device of another size":  {func(in *check.Input, _ contents) { in.Devices[1].Bytes++ }, check.KindSize, "has 1048577 bytes instead of", 3, false},
		"device on another pool":  {func(in *check.Input, _ contents) { in.Devices[1].OnPool = false }, check.KindDevice, "remove it before", 3, false},
		"device shows another":    {func(in *check.Input, _ contents) { in.Devices[1].Shows = 2 }, check.KindDevice, "shows volume 2", 3, false},
		"name taken":              {func(in *check.Input, _ contents) { in.Devices[1].Ours = false }, check.KindDevice, "foreign device", 3, false},
		"layer open for writing":  {func(in *check.Input, _ contents) { in.Devices[0].ReadOnly, in.Devices[0].OpenCount = false, 1 }, check.KindDevice, "open for writing", 2, false},
		"device without a record": {func(in *check.Input, _ contents) { in.Devices = append(in.Devices, device(5, false)) }, check.KindDevice, "no record owns", 5, true},
		"unused mount":            {func(in *check.Input, _ contents) { in.Mounts = []string{"2"} }, check.KindMount, "no active snapshot", 2, true},
		"mount of nothing":        {func(in *check.Input, _ contents) { in.Mounts = []string{"lost+found"} }, check.KindMount, "no active snapshot", 0, false},
		"loop left":               {func(in *check.Input, _ contents) { in.Loops = []blockdev.LoopState{{Path: "/dev/loop7"}} }, check.KindLoop, "uses the pool's file", 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			in, c := world()
			test.change(&in, c)
			r := compare(t, in)
			require.Len(t, r.Findings, 1)
			require.Equal(t, test.kind, r.Findings[0].Kind)
			require.Equal(t, test.device, r.Findings[0].DeviceID)
			require.Contains(t, r.Findings[0].Text, test.text)
			require.Equal(t, test.repair, r.Findings[0].Repair != "")
		})
	}
}

// TestPending: differences that the daemon or its next start settles are not findings.
func TestPending(t *testing.T) {
	in, c := world()
	in.Running = false
	c[70], c[71] = nil, nil
	in.Unrecorded = map[thin.ID]bool{71: true}
	half := device(3, false)
	half.Live = false
	suspended := device(4, false)
	suspended.Suspended = true
	in.Devices = []pool.MappedDevice{device(1, false), device(2, false), half, suspended, device(70, false), device(71, false)}
	r := compare(t, in)
	require.Empty(t, r.Findings)
	var kinds []string
	for _, p := range r.Pending {
		kinds = append(kinds, string(p.Kind)+" "+p.Subject)
	}
	require.Equal(t, []string{
		"device base volume ext4/1048576", `device snapshot "layer"`, `device snapshot "box"`, `device removed snapshot "old"`, "device volume 70",
		"leftover volume 70", `trash removed snapshot "old"`,
	}, kinds)
}

// TestBaseThatIsGone: a snapshot without a parent is compared only with the base volume that it was
// created from.
func TestBaseThatIsGone(t *testing.T) {
	in, c := world()
	in.Records.Bases = append(in.Records.Bases, metadata.BaseRecord{Filesystem: "ext4", Size: 1 << 19, VolumeID: 6})
	c[6] = []thinmeta.Mapping{{Virtual: 1, Data: 60, Time: 0}}
	c[2] = append([]thinmeta.Mapping{}, c[6]...)
	c[3] = c[2]
	require.Len(t, compare(t, in).Findings, 1, "a snapshot of the wrong base volume")
	for _, base := range []uint32{6, 7, 0} {
		in.Records.Snapshots[0].Base = base
		require.Empty(t, compare(t, in).Findings, "snapshots of the right, of a deleted and of an unknown base volume")
	}
}

// reset is the content of a pool whose times were reset.
type reset struct{ contents }

func (r reset) Devices(context.Context) iter.Seq2[thinmeta.Device, error] {
	return func(yield func(thinmeta.Device, error) bool) {
		for id := range r.contents {
			if !yield(thinmeta.Device{ID: id, SnapshottedTime: 1}, nil) {
				return
			}
		}
	}
}

// TestResetTimes: after a reset, no block's time proves that the block belongs to another volume.
func TestResetTimes(t *testing.T) {
	in, c := world()
	for _, mappings := range c {
		for i := range mappings {
			mappings[i].Time = 0
		}
	}
	require.NotEmpty(t, compare(t, in).Findings)
	in.Contents = reset{c}
	require.Empty(t, compare(t, in).Findings)
}

// TestStrayLoopIsIdentified: a repair must detach the loop device that was found, not one that has
// taken its path since.
func TestStrayLoopIsIdentified(t *testing.T) {
	in, _ := world()
	in.Loops = []blockdev.LoopState{{Path: "/dev/loop7", Device: 8, Inode: 77}}
	r := compare(t, in)
	require.Len(t, r.Findings, 1)
	require.Equal(t, in.Loops[0], r.Findings[0].Loop)
}

func TestPersisting(t *testing.T) {
	stays, goes, comes := check.Finding{Kind: check.KindTrash, DeviceID: 1}, check.Finding{Kind: check.KindTrash, DeviceID: 2}, check.Finding{Kind: check.KindSize, DeviceID: 1}
	first := check.Report{Findings: []check.Finding{stays, goes}}
	stays.Text = "and says more"
	second := check.Report{Findings: []check.Finding{stays, comes}}
	require.Equal(t, []check.Finding{stays}, second.Persisting(first).Findings)
	require.Len(t, second.Findings, 2)
}
