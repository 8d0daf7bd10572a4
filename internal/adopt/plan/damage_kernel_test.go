package plan_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	dm "github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/adopt/builtin"
	"github.com/thinsnap/thinsnap/internal/adopt/plan"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// TestPlanOfDamage has each kind of damage on one node, by changes of real volumes and of
// containerd's records.
func TestPlanOfDamage(t *testing.T) {
	dmtest.RequireThorough(t)
	n := newNode(t, 2<<30, true)
	n.start()
	want := make(map[string]string) // the problem of each snapshot; empty if it is adopted
	image := func(name string, damaged ...string) {
		n.layer("default", name+"-base", "")
		n.layer("default", name+"-top", name+"-base")
		n.prepare("default", name+"-box", name+"-top", 1)
		for _, part := range []string{"-base", "-top", "-box"} {
			want[name+part] = ""
		}
		for i := 0; i < len(damaged); i += 2 {
			want[name+damaged[i]] = damaged[i+1]
		}
	}
	image("whole")
	image("deleted", "-top", "not in the pool", "-box", "descends from")
	image("recordless", "-top", "no device", "-box", "descends from")
	image("keyless", "-box", "does not have")
	image("exchanged1", "-box", "not a copy")
	image("exchanged2", "-box", "not a copy")
	image("overwritten", "-top", "no ext4 or xfs", "-box", "not a copy")
	image("written", "-top", "not a copy", "-box", "descends from")
	image("states")
	n.prepare("default", "nameless", "whole-top", 1)
	n.prepare("default", "faulty", "whole-top", 1)
	n.prepare("default", "lone", "", 1)
	want["lone"] = ""
	n.view("default", "view", "")
	want["view"] = "View without a parent"
	cut := n.cut("cut")
	want["cut"] = "not unmounted cleanly"
	n.stop()
	n.size = "32MB"
	n.start()
	n.small("small", "whole-top")
	want["small"] = "and its parent one of"
	n.stop()
	n.size, n.fs = "512MB", "xfs"
	n.start()
	image("xfs")
	cutXFS := n.cut("cut-xfs")
	want["cut-xfs"] = "not unmounted cleanly"
	n.stop()
	n.size, n.fs, n.async = "64MB", "ext2", true
	n.start()
	n.prepare("default", "gone", "", 1)
	gone := n.remove("default", "gone") // its volume remains until the next collection
	n.layer("default", "ext2", "")
	want["ext2"] = `the file system "ext2"`
	ctx, sn := n.in("default")
	require.NoError(t, sn.Remove(ctx, "nameless"))
	require.NoError(t, sn.Remove(ctx, "faulty"))
	keys := make(map[string]string)
	for name := range want {
		keys[name] = n.backend("default", name)
	}
	faulty := n.backend("default", "faulty")
	n.stop()

	devices, faultyDevice := make(map[string]builtin.Device), n.device(faulty)
	for name, key := range keys {
		devices[name] = n.device(key)
	}
	for _, name := range []string{"deleted-top", "overwritten-top", "written-base"} {
		_ = n.control.Deactivate(devices[name].Name) // it may be inactive
	}
	require.NoError(t, n.Delete(thin.ID(devices["deleted-top"].ID)))
	n.overwrite(devices["overwritten-top"], 0)
	n.overwrite(devices["written-base"], 2)
	n.restore(devices["cut"], cut)
	n.restore(devices["cut-xfs"], cutXFS)
	n.editPool(func(tx *bolt.Tx) error {
		exchange := func(name string, id uint32) {
			d := devices[name]
			d.ID = id
			put(t, tx, d)
		}
		exchange("exchanged1-box", devices["exchanged2-box"].ID)
		exchange("exchanged2-box", devices["exchanged1-box"].ID)
		state := func(d builtin.Device, s builtin.State) {
			d.State = s
			put(t, tx, d)
		}
		state(devices["states-base"], builtin.StateFaulty)
		state(devices["states-top"], builtin.StateRemoved)
		state(devices["states-box"], builtin.StateDeactivated)
		state(faultyDevice, builtin.StateFaulty)
		return tx.Bucket([]byte("devices")).Delete([]byte(devices["recordless-top"].Name))
	})
	n.edit(filepath.Join(n.builtinRoot(), "metadata.db"), func(tx *bolt.Tx) error {
		return tx.Bucket([]byte("v1")).Bucket([]byte("snapshots")).DeleteBucket([]byte(keys["keyless-box"]))
	})
	n.commit()

	// A foreign device shows an adopted volume, and a container is in use.
	lone := devices["lone"]
	require.NoError(t, n.control.Deactivate(lone.Name))
	n.activate("theirs", lone)
	box := dm.NodePath(devices["whole-box"].Name)
	dir := t.TempDir()
	require.NoError(t, unix.Mount(box, dir, "ext4", 0, ""))
	p := n.make(n.options())
	require.Len(t, p.Obstacles, 2)
	for _, o := range p.Obstacles {
		if o.Subject == `mapped device "theirs"` {
			require.Contains(t, o.Text, "the built-in did not make it")
		} else {
			require.Contains(t, o.Text, "mounted on "+dir)
		}
	}
	require.NoError(t, unix.Unmount(dir, 0))
	require.NoError(t, n.control.Deactivate("theirs"))
	n.commit()

	p = n.make(n.options())
	require.Empty(t, p.Obstacles)
	require.False(t, p.Possible())
	got := make(map[string]string)
	for _, r := range p.Rows {
		if r.Name == "" {
			continue
		}
		got[r.Name] = r.Problem
		if text := want[r.Name]; text != "" && strings.Contains(r.Problem, text) {
			got[r.Name] = text
		}
	}
	require.Equal(t, want, got)

	o := n.options()
	o.LeaveOutDamaged = true
	p = n.make(o)
	require.True(t, p.Possible())
	left := make(map[string]bool)
	for name, text := range want {
		if text != "" {
			left[name] = true
		}
	}
	require.Equal(t, left, p.LeaveOut["default"])
	kept := make(map[uint32]bool)
	for _, k := range p.Adoption.Kept {
		kept[k.VolumeID] = true
	}
	require.True(t, kept[faultyDevice.ID], "it is a copy of one of the built-in's volumes")
	require.False(t, kept[devices["deleted-top"].ID])
	require.Contains(t, p.Rows, plan.Row{
		Device: gone, VolumeID: volumeOf(p, gone), Kind: plan.KindDevice, Bytes: 64 << 20, Becomes: plan.Kept,
	})
	require.True(t, kept[volumeOf(p, gone)])
	for _, name := range p.Idle {
		require.NoError(t, n.control.Deactivate(name))
	}
	require.Empty(t, n.check(p).Findings)
}

func volumeOf(p plan.Plan, device string) uint32 {
	for _, r := range p.Rows {
		if r.Device == device {
			return r.VolumeID
		}
	}
	return 0
}

// cut commits a snapshot, and returns the id of a copy from before its file system was unmounted.
// With the copy, restore brings the snapshot into the state after a power cut.
func (n *node) cut(name string) (id uint32) {
	n.t.Helper()
	n.prepare("default", "extract "+name, "", 1)
	ctx, sn := n.in("default")
	mounts, err := sn.Mounts(ctx, "extract "+name)
	require.NoError(n.t, err)
	id = 5000 + uint32(len(name))
	require.NoError(n.t, mount.WithTempMount(ctx, mounts, func(root string) error {
		file, err := os.Create(filepath.Join(root, "late"))
		require.NoError(n.t, err)
		require.NoError(n.t, file.Sync())
		require.NoError(n.t, file.Close())
		device := filepath.Base(mounts[0].Source)
		_, err = n.control.Suspend(device, dm.SuspendOptions{SkipLockFS: true})
		require.NoError(n.t, err)
		_, targets, err := n.control.Table(device)
		require.NoError(n.t, err)
		_, origin, err := thin.ParseTarget(targets[0].Params)
		require.NoError(n.t, err)
		require.NoError(n.t, n.CreateSnap(thin.ID(id), origin))
		_, err = n.control.Resume(device)
		return err
	}))
	require.NoError(n.t, sn.Commit(ctx, name, "extract "+name, needed()))
	return id
}

// restore writes the content of a copy to the volume of a device, and deletes the copy.
func (n *node) restore(d builtin.Device, id uint32) {
	n.t.Helper()
	_ = n.control.Deactivate(d.Name) // it may be inactive
	n.activate(d.Name, d)
	n.activate("copy", builtin.Device{ID: id, Bytes: d.Bytes})
	from, err := os.Open(dm.NodePath("copy"))
	require.NoError(n.t, err)
	to, err := os.OpenFile(dm.NodePath(d.Name), os.O_RDWR, 0)
	require.NoError(n.t, err)
	want, is := make([]byte, 1<<20), make([]byte, 1<<20)
	for at := int64(0); at < int64(d.Bytes); at += int64(len(want)) {
		_, err := from.ReadAt(want, at)
		require.NoError(n.t, err)
		_, err = to.ReadAt(is, at)
		require.NoError(n.t, err)
		if !bytes.Equal(want, is) {
			_, err = to.WriteAt(want, at)
			require.NoError(n.t, err)
		}
	}
	require.NoError(n.t, errors.Join(to.Sync(), to.Close(), from.Close()))
	require.NoError(n.t, errors.Join(n.control.Deactivate("copy"), n.control.Deactivate(d.Name)))
	require.NoError(n.t, n.Delete(thin.ID(id)))
}

// small creates a container that cannot be mounted.
func (n *node) small(key, parent string) {
	n.t.Helper()
	ctx, sn := n.in("default")
	_, err := sn.Prepare(ctx, key, parent, needed())
	require.NoError(n.t, err)
}

// overwrite writes zeros to a block of a device's volume.
func (n *node) overwrite(d builtin.Device, block int64) {
	n.t.Helper()
	n.activate("overwritten", d)
	file, err := os.OpenFile(dm.NodePath("overwritten"), os.O_WRONLY, 0)
	require.NoError(n.t, err)
	_, err = file.WriteAt(make([]byte, 64<<10), block<<16)
	require.NoError(n.t, err)
	require.NoError(n.t, file.Close())
	require.NoError(n.t, blockdev.Flush(dm.NodePath("overwritten")))
	require.NoError(n.t, n.control.Deactivate("overwritten"))
}

func (n *node) editPool(change func(tx *bolt.Tx) error) {
	n.t.Helper()
	n.edit(filepath.Join(n.builtinRoot(), n.Name()+".db"), change)
}

func (n *node) edit(path string, change func(tx *bolt.Tx) error) {
	n.t.Helper()
	db, err := bolt.Open(path, 0, nil)
	require.NoError(n.t, err)
	require.NoError(n.t, db.Update(change))
	require.NoError(n.t, db.Close())
}

// put writes the record of a device like containerd's device_info.go, and the state of its id.
func put(t *testing.T, tx *bolt.Tx, d builtin.Device) {
	t.Helper()
	record, err := json.Marshal(map[string]any{
		"device_id": d.ID, "size": d.Bytes, "name": d.Name, "parent_name": d.Parent, "state": d.State, "error": d.Error,
	})
	require.NoError(t, err)
	require.NoError(t, tx.Bucket([]byte("devices")).Put([]byte(d.Name), record))
	require.NoError(t, tx.Bucket([]byte("device_ids")).Put([]byte(strconv.Itoa(int(d.ID))), []byte{1}))
}

func (n *node) device(key string) builtin.Device {
	n.t.Helper()
	dbs, err := builtin.Read(n.t.Context(), n.builtinRoot(), n.Name())
	require.NoError(n.t, err)
	for _, s := range dbs.Snapshots {
		if s.Key == key {
			d, found := dbs.Device(s)
			require.True(n.t, found)
			return d
		}
	}
	require.Fail(n.t, "no snapshot", key)
	return builtin.Device{}
}
