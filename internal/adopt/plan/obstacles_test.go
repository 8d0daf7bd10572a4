package plan

import (
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/adopt/builtin"
	"github.com/thinsnap/thinsnap/metadata"
)

// TestObstacles has each obstacle that judge finds.
func TestObstacles(t *testing.T) {
	mapped := func(m mappedDevice) func(w *world) {
		return func(w *world) { w.in.mapped = append(w.in.mapped, m) }
	}
	for name, test := range map[string]struct {
		change                func(w *world)
		subject, text, remedy string
	}{
		"suspended":       {func(w *world) { w.in.pool.suspended = true }, `pool "fc"`, "suspended", "dmsetup resume fc"},
		"failed":          {func(w *world) { w.in.pool.status.Mode, w.in.unread = thin.ModeFail, true }, `pool "fc"`, "failed", "dmesg"},
		"counters failed": {func(w *world) { w.in.pool.status.Mode, w.in.unread = thin.ModeError, true }, `pool "fc"`, "failed", "dmesg"},
		"read-only":       {func(w *world) { w.in.pool.status.Mode = thin.ModeReadOnly }, `pool "fc"`, "read-only", "extend its metadata"},
		"read-only table": {func(w *world) { w.in.pool.table.ReadOnly = true }, `pool "fc"`, "read-only", "extend its metadata"},
		"needs_check":     {func(w *world) { w.in.pool.status.NeedsCheck = true }, `pool "fc"`, "needs_check", "thin_repair"},
		"needs_check, LVM's": {func(w *world) {
			w.in.pool.status.NeedsCheck, w.in.pool.lvm = true, "vg/pool"
		}, `pool "fc"`, "needs_check", "lvconvert --repair vg/pool"},
		"metadata snapshot": {func(w *world) { w.in.pool.status.HeldRoot = 7 }, `pool "fc"`, "metadata snapshot", "dmsetup message fc 0 release_metadata_snap"},
		"ids":               {func(w *world) { w.in.highest = metadata.FirstInForeign }, `pool "fc"`, "the highest is 8388608", "another thinsnap"},
		"one volume, two snapshots": {func(w *world) { w.device("k8s.io/3/box").ID = 106 }, `snapshot "k8s.io/3/box"`,
			`the volume 106, like snapshot "default/6/alone"`, "remove all snapshots"},
		"one id, two snapshots": {func(w *world) { w.snapshot("moby/8/box").ID = 7 }, `snapshot "moby/8/box"`, "like snapshot", "backup"},
		"mounted": {mapped(mappedDevice{name: "fc-snap-3", shows: 103, openCount: 1, mounts: []string{"/a", "/b", "/c", "/d"}}),
			`mapped device "fc-snap-3"`, "mounted on /a, /b, /c and 1 more", "unmount it"},
		"open":           {mapped(mappedDevice{name: "fc-snap-3", shows: 103, openCount: 2}), `mapped device "fc-snap-3"`, "open count 2", "fuser -v /dev/mapper/fc-snap-3"},
		"a View's, open": {mapped(mappedDevice{name: "fc-snap-5", shows: 105, openCount: 2}), `mapped device "fc-snap-5"`, "open count 2", "fuser"},
		"another's":      {mapped(mappedDevice{name: "mine", shows: 103}), `mapped device "mine"`, `the volume 103 of snapshot "k8s.io/3/box"`, "dmsetup remove mine"},
		"another's, with a UUID": {mapped(mappedDevice{name: "fc-snap-3", uuid: "X", shows: 103}), `mapped device "fc-snap-3"`,
			"the built-in did not make it", "dmsetup remove"},
		"another's, exchanged": {mapped(mappedDevice{name: "fc-snap-3", shows: 101}), `mapped device "fc-snap-3"`, `of snapshot "k8s.io/1/a"`, "dmsetup remove"},
		"no names":             {func(w *world) { clear(w.names) }, `snapshotter "devmapper"`, "names no snapshot", "thinsnap config default"},
		"no witness": {func(w *world) {
			for _, key := range []string{"k8s.io/1/a", "default/4/a", "moby/7/x"} {
				w.volume(key, func(v *volume) { v.superblock.UUID = noUUID })
			}
			for _, key := range []string{"k8s.io/2/b", "k8s.io/3/box", "moby/8/box"} {
				w.volume(key, func(v *volume) { v.superblock.UUID = noUUID })
			}
		}, `snapshotter "devmapper"`, "no committed snapshot", "pull the images again"},
		"table not understood": {func(w *world) {
			w.in.pool.table.SkipBlockZeroing, w.in.pool.table.Data = true, ""
		}, `pool "fc"`, "does not zero new blocks", "without skip_block_zeroing"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			test.change(w)
			p := w.judge()
			require.False(t, p.Possible())
			require.Len(t, p.Obstacles, 1)
			o := p.Obstacles[0]
			require.Equal(t, test.subject, o.Subject)
			require.Contains(t, o.Text, test.text)
			require.Contains(t, o.Remedy, test.remedy)
		})
	}
}

// TestMappedDevicesThatAreNoObstacles: the built-in's idle devices are deactivated.
func TestMappedDevicesThatAreNoObstacles(t *testing.T) {
	w := newWorld()
	w.in.options.LeaveOutDamaged = true
	w.volume("moby/8/box", func(v *volume) { v.unreadable = "none found" })
	w.in.databases.Devices = append(w.in.databases.Devices, builtin.Device{Name: "fc-snap-50", ID: 150, State: builtin.StateRemoved})
	w.in.mapped = []mappedDevice{
		{name: "fc-snap-6", shows: 106},
		{name: "fc-snap-3", shows: 103},
		{name: "fc-snap-50", shows: 150},
		{name: "fc-snap-8", shows: 108, openCount: 1}, // left out
		{name: "theirs", shows: 900, openCount: 1},    // of another user of the pool
	}
	p := w.judge()
	require.Empty(t, p.Obstacles)
	require.True(t, p.Possible())
	require.Equal(t, []string{"fc-snap-3", "fc-snap-50", "fc-snap-6"}, p.Idle)
}

// TestReload: the new table lacks only skip_block_zeroing.
func TestReload(t *testing.T) {
	w := newWorld()
	w.in.pool.table.SkipBlockZeroing, w.in.pool.table.ErrorIfNoSpace, w.in.pool.table.LowWaterBlocks = true, true, 32768
	w.in.loaders = []string{"/usr/local/bin/pool.sh"}
	p := w.judge()
	require.True(t, p.Possible())
	require.Equal(t, &Reload{Table: "7:0 7:1 128 32768 1 error_if_no_space", Loaders: []string{"/usr/local/bin/pool.sh"}}, p.Reload)
	w.in.pool.lvm = "vg/pool"
	require.Equal(t, "vg/pool", w.judge().Reload.LVM)
}

// TestUnread: without the databases or the pool nothing is judged, and the obstacles found are
// reported.
func TestUnread(t *testing.T) {
	w := newWorld()
	w.in.unread, w.in.obstacles = true, []Obstacle{{"/r/fc.db", "another process has it open", "stop containerd"}}
	p := w.judge()
	require.False(t, p.Possible())
	require.Equal(t, w.in.obstacles, p.Obstacles)
	require.Empty(t, p.Rows)
}

// TestWitnesses: at most sixteen, in the order of their number of descendants.
func TestWitnesses(t *testing.T) {
	w := newWorld()
	for _, letter := range "abcdefghijklmnopqrstuvwxyz" {
		w.add(snapshots.KindCommitted, "moby/9/layer-"+string(letter), "", "ext4")
	}
	p := w.judge()
	require.True(t, p.Possible())
	newAdoptable(t).require(t, p)
	adopted := p.Adoption.Pool.Existing.Adopted
	require.Len(t, adopted, metadata.MaxAdopted)
	require.EqualValues(t, 101, adopted[0].VolumeID)
	require.EqualValues(t, 104, adopted[1].VolumeID)
	require.EqualValues(t, 107, adopted[2].VolumeID)
}

// TestDamagedAncestorWithoutAName: its descendants that containerd names are damaged too.
func TestDamagedAncestorWithoutAName(t *testing.T) {
	w := newWorld()
	w.forget("k8s.io/1/a")
	w.volume("k8s.io/1/a", func(v *volume) { v.unreadable = "none found" })
	p := w.judge()
	require.Equal(t, 3, p.Damaged())
	require.Equal(t, LeftOut, row(t, p, "k8s.io/1/a").Becomes)
	require.Contains(t, row(t, p, "k8s.io/3/box").Problem, `descends from "k8s.io/2/b", which is left out`)
	require.Contains(t, row(t, p, "k8s.io/2/b").Problem, `descends from "k8s.io/1/a", which has the volume 101 without`)
}
