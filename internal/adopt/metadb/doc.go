// Package metadb reads and changes the snapshotter's name in containerd's own database, meta.db of
// the plugin io.containerd.metadata.v1.bolt.
//
// containerd keeps a record of each snapshot beside the snapshotter's own one, in a bucket with the
// snapshotter's name. Containers, leases and labels refer to it by that name, and containerd has no
// call that changes it. So Rename does, in one transaction on a file that containerd does not have
// open. The names, parents and labels of the snapshots, and their names in the snapshotter, stay.
// Restore is the way back.
//
// # Snapshots that are left out
//
// They keep the old name, and so do their entries in leases, and the labels that refer to them. Where
// the parent of one has the new name, it no longer has the child in its list, since containerd could
// not find it. Their containers have the new name: a client that removes one accepts that its
// snapshot does not exist, and not that its snapshotter does not. Two labels keep from the collector
// what was kept before, so that the way back stays open:
//
//	v1/NS/snapshots/OLD/KEY/labels/containerd.io/gc.ref.snapshot.NEW/left-out-parent = PARENT
//	v1/NS/containers/ID/labels/containerd.io/gc.ref.snapshot.OLD/left-out            = KEY
//
// containerd 1.6 to 2.4 leaves the old names alone without a snapshotter of that name: the collector
// (core/metadata/gc.go) follows references by name, takes away the names that none reaches, and calls
// only snapshotters that it has (db.go, cleanupSnapshotter). Calls for the old name are InvalidArgument.
// But where the old snapshotter is configured and fails to load, 2.0 to 2.4 do not open meta.db at all
// (plugins/metadata/plugin.go, GetByType); 1.6 and 1.7 leave it out.
//
// # Layout
//
// The layout is that of containerd's core/metadata/buckets.go (metadata/buckets.go before 2.0), in
// schema v1. The version in v1/version is 3 from containerd 1.3 to 1.7, and 4 from 2.0
// (core/metadata/migrations.go). Places that name a snapshotter SN:
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
// outside v1. The collector does not follow the labels of leases. A dot does not end the name in a
// label, but a slash does.
//
// The sequence of the bucket v1/NS/snapshots/SN makes the names in the snapshotter, NS/NUMBER/KEY
// (core/metadata/snapshot.go, createKey), so it must never restart.
//
// # Not in this file
//
// The mount manager of containerd 2.4 (core/mount/manager) has labels gc.bref.snapshot.SN in a
// database of its own, which a reboot removes. A checkpoint image has the name in an annotation of
// its index, which is content.
package metadb
