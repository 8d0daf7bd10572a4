// Package metadb reads and changes the snapshotter's name in containerd's own database, meta.db of
// the plugin io.containerd.metadata.v1.bolt.
//
// containerd has a record of each snapshot besides that of the snapshotter, in a bucket with the
// snapshotter's name. Containers, leases and labels refer to the snapshot by that name, and
// containerd has no call that changes it. Rename changes it in one transaction, while containerd
// does not have the file open. The names, parents and labels of the snapshots remain, and so do
// their names in the snapshotter. Restore undoes Rename.
//
// # Snapshots that are left out
//
// They keep the old name, and so do their entries in leases and the labels that refer to them. If
// the parent of one has the new name, the child is removed from the parent's list, since containerd
// could not find it. Their containers get the new name: a client that removes a container accepts a
// snapshot that does not exist, but not an unknown snapshotter. Two labels keep the same snapshots
// from the collector as before, so that Restore remains possible:
//
//	v1/NS/snapshots/OLD/KEY/labels/containerd.io/gc.ref.snapshot.NEW/left-out-parent = PARENT
//	v1/NS/containers/ID/labels/containerd.io/gc.ref.snapshot.OLD/left-out            = KEY
//
// containerd 1.6 to 2.4 keeps referenced names of a snapshotter that it does not have. The collector
// (core/metadata/gc.go) follows references by name, removes names without a reference, and calls
// only snapshotters that exist (db.go, cleanupSnapshotter). Calls for the old name fail with
// InvalidArgument. But if the old snapshotter is configured and fails to load, 2.0 to 2.4 do not
// open meta.db at all (plugins/metadata/plugin.go, GetByType); 1.6 and 1.7 run without it.
//
// # Layout
//
// The layout is that of containerd's core/metadata/buckets.go (metadata/buckets.go before 2.0), in
// schema v1. The version in v1/version is 3 from containerd 1.3 to 1.7, and 4 from 2.0
// (core/metadata/migrations.go). Places with the name of a snapshotter SN:
//
//	v1/NS/snapshots/SN/KEY/             name, parent, createdat, updatedat, children/KEY, labels/NAME
//	v1/NS/containers/ID/snapshotter     = SN; the snapshot is in snapshotKey
//	v1/NS/leases/ID/snapshots/SN/KEY
//	v1/NS/labels/containerd.io/defaults/snapshotter = SN     (defaults/defaults.go)
//	OBJECT/labels/containerd.io/gc.ref.snapshot.SN[/ANY]     (core/metadata/gc.go, startGCContext)
//	OBJECT/labels/containerd.io/gc.bref.snapshot.SN[/ANY]    newer than containerd 2.1
//	OBJECT/labels/containerd.io/gc.cond.snapshot.SN[/ANY]    newer than containerd 2.1
//
// OBJECT is v1/NS/{images,containers,sandboxes}/ID, v1/NS/content/blob/DIGEST,
// v1/NS/snapshots/SN/KEY of any snapshotter, or NS/sandboxes/ID of version 3, which has sandboxes
// outside v1. The collector does not follow the labels of leases. In a label, a slash ends the
// name, but a dot does not.
//
// The sequence of the bucket v1/NS/snapshots/SN numbers the names in the snapshotter, NS/NUMBER/KEY
// (core/metadata/snapshot.go, createKey), so it must never restart.
//
// # Not in meta.db
//
// The mount manager of containerd 2.4 (core/mount/manager) has labels gc.bref.snapshot.SN in its
// own database, which a reboot removes. A checkpoint image has the name in an annotation of its
// index, which is content.
package metadb
