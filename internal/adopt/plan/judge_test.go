package plan

import (
	"maps"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/adopt/builtin"
	"github.com/thinsnap/thinsnap/internal/adopt/metadb"
	"github.com/thinsnap/thinsnap/metadata"
)

// whole returns the fates in newWorld.
func whole() map[string]Fate {
	return map[string]Fate{
		"k8s.io/1/a": Adopted, "k8s.io/2/b": Adopted, "k8s.io/3/box": Adopted, "default/4/a": Adopted,
		"default/5/look": AdoptedView, "default/6/alone": Adopted, "moby/7/x": Adopted, "moby/8/box": Adopted,
	}
}

func TestAllIsAdopted(t *testing.T) {
	p := newWorld().judge()
	newAdoptable(t).require(t, p)
	require.True(t, p.Possible())
	require.Zero(t, p.Damaged())
	require.Equal(t, whole(), fates(p))
	require.Empty(t, p.LeaveOut)
	require.Nil(t, p.Reload)
	require.Equal(t, Row{
		Key: "k8s.io/2/b", Name: "b", Namespace: "k8s.io", Device: "fc-snap-2", VolumeID: 102, Kind: KindCommitted,
		Bytes: 10 * mib, Becomes: Adopted,
	}, row(t, p, "k8s.io/2/b"))

	records := make(map[string]metadata.Snapshot)
	for _, s := range p.Adoption.Snapshots {
		records[s.Key] = s
	}
	require.Equal(t, metadata.Snapshot{
		Key: "k8s.io/2/b", Parent: "k8s.io/1/a", Kind: snapshots.KindCommitted, Created: time.Unix(2, 0).UTC(),
		Updated: time.Unix(3, 0).UTC(), VolumeID: 102, Size: 10 * mib, Filesystem: "ext4",
		Usage: metadata.Usage{Bytes: 12 * block, Inodes: 11},
	}, records["k8s.io/2/b"])
	require.Equal(t, metadata.Snapshot{
		Key: "moby/8/box", Parent: "moby/7/x", Kind: snapshots.KindActive, Labels: map[string]string{"app": "moby/8/box"},
		Created: time.Unix(8, 0).UTC(), Updated: time.Unix(9, 0).UTC(), VolumeID: 108, Size: 10 * mib, Filesystem: "xfs",
	}, records["moby/8/box"])
	require.Equal(t, metadata.Snapshot{
		Key: "default/5/look", Parent: "default/4/a", Kind: snapshots.KindView, Created: time.Unix(5, 0).UTC(),
		Updated: time.Unix(6, 0).UTC(), VolumeID: 104, Size: 10 * mib, Filesystem: "ext4",
	}, records["default/5/look"])
	require.Equal(t, []metadata.KeptRecord{
		{VolumeID: 105, Mapped: 15 * block, Size: 160 * block, Found: time.Unix(1000, 0).UTC()},
	}, p.Adoption.Kept, "the volume of the View")
	require.Equal(t, metadata.PoolRecord{
		ID: "POOL", Mode: "existing", Name: "thinsnap", BlockSize: block, Created: time.Unix(1000, 0).UTC(), Complete: true,
		Existing: metadata.ExistingPool{MappedDevice: "fc", Adopted: []metadata.AdoptedVolume{
			{VolumeID: 101, Filesystem: "ext4", UUID: "uuid-1"}, {VolumeID: 104, Filesystem: "ext4", UUID: "uuid-4"},
			{VolumeID: 107, Filesystem: "xfs", UUID: "uuid-7"},
		}},
	}, p.Adoption.Pool)
	require.Equal(t, metadata.ClientRecord{Number: 1, Proxy: "thinsnap", Installation: "UUID"}, p.Adoption.Client)
}

// TestDamage has each kind of damage to a snapshot with a descendant.
func TestDamage(t *testing.T) {
	sb := func(change func(v *volume)) func(w *world) {
		return func(w *world) { w.volume("k8s.io/2/b", change) }
	}
	box := map[string]Fate{"k8s.io/3/box": LeftOut}
	both := map[string]Fate{"k8s.io/2/b": LeftOut, "k8s.io/3/box": LeftOut}
	store := newAdoptable(t)
	for name, test := range map[string]struct {
		change func(w *world)
		key    string // the damaged one
		text   string
		fates  map[string]Fate // those that differ from whole
		kept   []uint32        // besides the View's volume
	}{
		"no device": {func(w *world) {
			w.in.databases.Devices = append(w.in.databases.Devices[:1:1], w.in.databases.Devices[2:]...)
		}, "k8s.io/2/b", "has no device", both, []uint32{103}},
		"no volume":              {sb(func(v *volume) { v.exists, v.whole = false, false }), "k8s.io/2/b", "the volume 102, which is not in the pool", both, []uint32{103}},
		"no mappings":            {sb(func(v *volume) { v.whole = false }), "k8s.io/2/b", "mappings the pool has lost", both, []uint32{103}},
		"no size":                {func(w *world) { w.device("k8s.io/2/b").Bytes = 511 }, "k8s.io/2/b", "without a size", both, []uint32{102, 103}},
		"too small":              {func(w *world) { w.device("k8s.io/3/box").Bytes -= 512 }, "k8s.io/3/box", "a device of 10485248 bytes, and its parent one of 10485760", box, []uint32{103}},
		"data beyond its device": {sb(func(v *volume) { v.end++ }), "k8s.io/2/b", "data up to byte 10551296, and a device of 10485760", both, []uint32{102, 103}},
		"foreign block":          {sb(func(v *volume) { v.descent.Oldest = 1 }), "k8s.io/2/b", "not its parent's, and too old", both, []uint32{102, 103}},
		"as old as its parent's": {func(w *world) {
			w.volume("k8s.io/2/b", func(v *volume) { v.created = 1 })
			w.volume("k8s.io/1/a", func(v *volume) { v.last = 2 })
		}, "k8s.io/2/b", "not its parent's, and too old", both, []uint32{102, 103}},
		"another's blocks": {sb(func(v *volume) {
			v.descent.Shared, v.superblock.UUID = false, "other"
		}), "k8s.io/2/b", "share no block, and have different file systems", both, []uint32{102, 103}},
		"a copy": {func(w *world) { w.volume("default/6/alone", func(v *volume) { v.inherited = true }) }, "default/6/alone",
			"a copy of another one", map[string]Fate{"default/6/alone": LeftOut}, nil},
		"no file system": {sb(func(v *volume) { v.unreadable = "none found" }), "k8s.io/2/b", "without a file system: none found", both, []uint32{102, 103}},
		"another type":   {sb(func(v *volume) { v.superblock.Type = "xfs" }), "k8s.io/2/b", "has an xfs where the built-in made an ext4", both, []uint32{102, 103}},
		"another type than its parent": {func(w *world) {
			w.snapshot("k8s.io/2/b").Labels[builtin.FilesystemLabel] = "xfs"
			w.volume("k8s.io/2/b", func(v *volume) { v.superblock.Type = "xfs" })
		}, "k8s.io/2/b", "has an xfs, and its parent an ext4", both, []uint32{102, 103}},
		"ext2":               {func(w *world) { w.snapshot("k8s.io/2/b").Labels[builtin.FilesystemLabel] = "ext2" }, "k8s.io/2/b", `"ext2", and thinsnap supports ext4 and xfs`, both, []uint32{102, 103}},
		"beyond its device":  {sb(func(v *volume) { v.superblock.Bytes++ }), "k8s.io/2/b", "an ext4 of 10485761 bytes on a device of 10485760", both, []uint32{102, 103}},
		"journal":            {sb(func(v *volume) { v.superblock.NeedsRecovery = true }), "k8s.io/2/b", "not unmounted cleanly", both, []uint32{102, 103}},
		"no journal":         {sb(func(v *volume) { v.superblock.Unclean = true }), "k8s.io/2/b", "not unmounted cleanly", both, []uint32{102, 103}},
		"errors":             {sb(func(v *volume) { v.superblock.Damage = "7 errors" }), "k8s.io/2/b", "with a damaged ext4: 7 errors", both, []uint32{102, 103}},
		"xfs with a log":     {func(w *world) { w.volume("moby/7/x", func(v *volume) { v.dirtyLog = true }) }, "moby/7/x", "not unmounted cleanly", map[string]Fate{"moby/7/x": LeftOut, "moby/8/box": LeftOut}, []uint32{107, 108}},
		"View alone":         {func(w *world) { w.snapshot("default/6/alone").Kind = snapshots.KindView }, "default/6/alone", "View without a parent", map[string]Fate{"default/6/alone": LeftOut}, []uint32{106}},
		"no parent":          {func(w *world) { w.lose("k8s.io/2/b") }, "k8s.io/3/box", `the parent "k8s.io/2/b", which does not exist`, map[string]Fate{"k8s.io/2/b": LeftOut, "k8s.io/3/box": LeftOut, "fc-snap-2": Kept}, []uint32{102, 103}},
		"active parent":      {func(w *world) { w.snapshot("k8s.io/2/b").Kind = snapshots.KindActive }, "k8s.io/3/box", "which is not committed", box, []uint32{103}},
		"another's copy":     {func(w *world) { w.device("k8s.io/2/b").Parent = "fc-snap-4" }, "k8s.io/2/b", `a copy of "fc-snap-4", not of its parent's device "fc-snap-1"`, both, []uint32{102, 103}},
		"no copy":            {func(w *world) { w.device("k8s.io/2/b").Parent = "" }, "k8s.io/2/b", `a copy of "", not`, both, []uint32{102, 103}},
		"copy without cause": {func(w *world) { w.snapshot("k8s.io/2/b").Parent = ""; w.containerds("k8s.io/2/b").Parent = "" }, "k8s.io/2/b", `a copy of "fc-snap-1"`, map[string]Fate{"k8s.io/2/b": LeftOut, "k8s.io/3/box": LeftOut}, []uint32{102, 103}},
		"own ancestor": {func(w *world) {
			w.snapshot("k8s.io/1/a").Parent, w.containerds("k8s.io/1/a").Parent = "k8s.io/2/b", "b"
			w.device("k8s.io/1/a").Parent = "fc-snap-2"
		}, "k8s.io/1/a", "its own ancestor", map[string]Fate{"k8s.io/1/a": LeftOut, "k8s.io/2/b": LeftOut, "k8s.io/3/box": LeftOut}, []uint32{101, 102, 103}},
		"name of nothing":   {func(w *world) { w.name("k8s.io/99/gone", "") }, "k8s.io/99/gone", "which the built-in does not have", map[string]Fate{"k8s.io/99/gone": LeftOut}, nil},
		"name without name": {func(w *world) { w.name("k8s.io/99/gone", ""); w.containerds("k8s.io/99/gone").Backend = "" }, "", "has no name in the built-in", map[string]Fate{"": LeftOut}, nil},
		"two names": {func(w *world) { w.name("moby/8/box", "moby/7/x"); w.names["moby"].Snapshots[2].Key = "second" }, "moby/8/box", "more than one name",
			map[string]Fate{"moby/8/box": LeftOut}, []uint32{108}},
		"another parent in containerd": {func(w *world) { w.containerds("k8s.io/3/box").Parent = "a" }, "k8s.io/3/box", `the parent "a" in containerd's database, and "k8s.io/2/b" in`, box, []uint32{103}},
		"no parent in containerd":      {func(w *world) { w.containerds("k8s.io/3/box").Parent = "" }, "k8s.io/3/box", `the parent "" in containerd's database`, box, []uint32{103}},
		"descends by containerd's database": {func(w *world) {
			w.containerds("k8s.io/3/box").Parent = "gone"
			w.name("k8s.io/99/gone", "")
		}, "k8s.io/3/box", `descends from "gone"`, map[string]Fate{"k8s.io/3/box": LeftOut, "k8s.io/99/gone": LeftOut}, []uint32{103}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			test.change(w)
			p := w.judge()
			require.False(t, p.Possible())
			require.Empty(t, p.Obstacles)
			want := whole()
			maps.Copy(want, test.fates)
			require.Equal(t, want, fates(p))
			require.Contains(t, row(t, p, test.key).Problem, test.text)
			require.Positive(t, p.Damaged())
			kept := map[uint32]bool{105: true}
			for _, id := range test.kept {
				kept[id] = true
			}
			for _, k := range p.Adoption.Kept {
				require.True(t, kept[k.VolumeID], "volume %d is kept", k.VolumeID)
				delete(kept, k.VolumeID)
			}
			require.Empty(t, kept, "are not kept")

			w.in.options.LeaveOutDamaged = true
			p = w.judge()
			require.True(t, p.Possible())
			require.Zero(t, p.Damaged())
			require.NotEmpty(t, p.LeaveOut)
			store.require(t, p)
		})
	}
}

// TestWhatIsNoDamage: some records of the built-in do not describe the volume's state.
func TestWhatIsNoDamage(t *testing.T) {
	store := newAdoptable(t)
	for name, change := range map[string]func(w *world){
		"Faulty": func(w *world) {
			w.device("k8s.io/2/b").State, w.in.databases.IDs[102] = builtin.StateFaulty, builtin.Faulty
		},
		"Removed":     func(w *world) { w.device("k8s.io/2/b").State = builtin.StateRemoved },
		"deactivated": func(w *world) { w.device("k8s.io/3/box").State = builtin.StateDeactivated },
		"free id":     func(w *world) { w.in.databases.IDs[102] = builtin.Free },
		"label lost":  func(w *world) { delete(w.snapshot("k8s.io/2/b").Labels, builtin.FilesystemLabel) },
		"container after a cut": func(w *world) {
			w.volume("k8s.io/3/box", func(v *volume) {
				v.superblock.NeedsRecovery, v.superblock.Unclean, v.superblock.Damage = true, true, "7 errors"
			})
		},
		"everything was written again": func(w *world) { w.volume("k8s.io/3/box", func(v *volume) { v.descent.Shared = false }) },
		"times were reset": func(w *world) {
			for _, key := range []string{"k8s.io/1/a", "k8s.io/2/b"} {
				w.volume(key, func(v *volume) { v.created, v.last = 0, 0 })
			}
			w.volume("k8s.io/2/b", func(v *volume) { v.descent.Newest, v.descent.Oldest = 0, 0 })
		},
		"larger than its parent": func(w *world) { w.device("k8s.io/3/box").Bytes *= 2 },
		"parent without a name":  func(w *world) { w.forget("k8s.io/1/a"); w.forget("k8s.io/2/b") },
		"View without a volume":  func(w *world) { w.volume("default/5/look", func(v *volume) { *v = volume{} }) },
		"View without a device": func(w *world) {
			w.in.databases.Devices = append(w.in.databases.Devices[:4:4], w.in.databases.Devices[5:]...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			change(w)
			p := w.judge()
			require.True(t, p.Possible())
			require.Equal(t, whole(), fates(p))
			store.require(t, p)
		})
	}
}

// TestVolumesWithoutAName: volumes that containerd does not name are kept, dropped or foreign.
func TestVolumesWithoutAName(t *testing.T) {
	faulty := func(w *world) {
		d := w.device("k8s.io/3/box")
		d.State, w.in.databases.IDs[d.ID] = builtin.StateFaulty, builtin.Faulty
		w.forget("k8s.io/3/box")
	}
	store := newAdoptable(t)
	for name, test := range map[string]struct {
		change  func(w *world)
		subject string // the key, or the device
		becomes Fate
		text    string
	}{
		"no name":            {func(w *world) { w.forget("k8s.io/3/box") }, "k8s.io/3/box", Kept, ""},
		"no name, no volume": {func(w *world) { w.volume("k8s.io/3/box", func(v *volume) { *v = volume{} }); w.forget("k8s.io/3/box") }, "k8s.io/3/box", Dropped, ""},
		"no name, no device": {func(w *world) {
			w.forget("k8s.io/3/box")
			w.in.databases.Devices = append(w.in.databases.Devices[:2:2], w.in.databases.Devices[3:]...)
		}, "k8s.io/3/box", Dropped, ""},
		"damaged, and no name": {func(w *world) {
			w.volume("k8s.io/3/box", func(v *volume) { v.unreadable = "none" })
			w.forget("k8s.io/3/box")
		}, "k8s.io/3/box", Kept, ""},
		"device without key": {func(w *world) { w.lose("k8s.io/3/box"); w.forget("k8s.io/3/box") }, "fc-snap-3", Kept, ""},
		"Faulty, a copy":     {func(w *world) { faulty(w); w.lose("k8s.io/3/box") }, "", Kept, ""},
		"Faulty, no copy": {func(w *world) {
			faulty(w)
			w.volume("k8s.io/3/box", func(v *volume) { v.descent.Shared = false })
		}, "k8s.io/3/box", Foreign, "Faulty"},
		"Faulty, no parent": {func(w *world) {
			w.device("default/6/alone").State = builtin.StateFaulty
			w.forget("default/6/alone")
		}, "default/6/alone", Foreign, "Faulty"},
		"being made": {func(w *world) { w.device("k8s.io/3/box").State = builtin.StateCreating; w.forget("k8s.io/3/box") }, "k8s.io/3/box", Foreign, "not completed"},
		"not made":   {func(w *world) { w.device("k8s.io/3/box").State = builtin.StateUnknown; w.forget("k8s.io/3/box") }, "k8s.io/3/box", Foreign, "not completed"},
		"free":       {func(w *world) { w.in.databases.IDs[103] = builtin.Free; w.forget("k8s.io/3/box") }, "k8s.io/3/box", Foreign, "is free"},
		"no state":   {func(w *world) { delete(w.in.databases.IDs, 103); w.forget("k8s.io/3/box") }, "k8s.io/3/box", Foreign, "is free"},
		"a copy": {func(w *world) {
			w.volume("default/6/alone", func(v *volume) { v.inherited = true })
			w.forget("default/6/alone")
		}, "default/6/alone", Foreign, "a copy of another volume"},
		"a copy of another": {func(w *world) {
			w.volume("k8s.io/3/box", func(v *volume) { v.descent.Oldest, v.descent.Shared = 1, false })
			w.forget("k8s.io/3/box")
		}, "k8s.io/3/box", Foreign, "shares nothing"},
		"no mappings": {func(w *world) {
			w.volume("k8s.io/3/box", func(v *volume) { v.whole = false })
			w.forget("k8s.io/3/box")
		}, "k8s.io/3/box", Foreign, "must not be deleted"},
		"another's volume": {func(w *world) {
			w.in.databases.Devices = append(w.in.databases.Devices, builtin.Device{Name: "fc-snap-9", ID: 103, State: builtin.StateRemoved})
			w.in.volumes["fc-snap-9"] = volume{exists: true, whole: true}
		}, "fc-snap-9", Dropped, ""},
		"listed twice": {func(w *world) {
			for _, name := range []string{"fc-snap-90", "fc-snap-91"} {
				w.in.databases.Devices = append(w.in.databases.Devices, builtin.Device{Name: name, ID: 190, State: builtin.StateRemoved})
				w.in.volumes[name], w.in.databases.IDs[190] = volume{exists: true, whole: true}, builtin.Taken
			}
		}, "fc-snap-91", Dropped, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			test.change(w)
			p := w.judge()
			require.True(t, p.Possible(), "%+v", p.Obstacles)
			store.require(t, p)
			if test.subject == "" {
				return
			}
			require.Equal(t, test.becomes, fates(p)[test.subject])
			for _, r := range p.Rows {
				if r.Becomes == Foreign {
					require.Contains(t, r.Problem, test.text)
				}
			}
		})
	}
}

// TestOrderOfRows: snapshots by key, then devices, then names.
func TestOrderOfRows(t *testing.T) {
	w := newWorld()
	w.lose("k8s.io/3/box")
	w.forget("moby/8/box")
	p := w.judge()
	var all []string
	for _, r := range p.Rows {
		all = append(all, r.Kind+" "+r.Key+r.Device)
	}
	require.Equal(t, []string{
		"committed default/4/afc-snap-4", "view default/5/lookfc-snap-5", "active default/6/alonefc-snap-6",
		"committed k8s.io/1/afc-snap-1", "committed k8s.io/2/bfc-snap-2", "committed moby/7/xfc-snap-7",
		"active moby/8/boxfc-snap-8", "device fc-snap-3", "name k8s.io/3/box",
	}, all)
	require.Equal(t, metadb.LeaveOut{"k8s.io": {"box": true}}, p.LeaveOut)
}
