// Package builtin reads the two databases of containerd's built-in devmapper snapshotter. It does
// not change them, and does not read the pool.
//
// # Layout
//
// The layout is that of containerd 1.3 to 2.4. File names are those of containerd 2.4.2. A varint
// is encoded as in encoding/binary, and nothing follows it in a value.
//
// ROOT/metadata.db has the snapshots (core/snapshots/storage/bolt.go). The snapshotter opens it
// with its first call, not when it starts (core/snapshots/storage/metastore.go:
// TransactionContext), and creates the buckets with the first snapshot (createBucketIfNotExists).
// Before that the file has none.
//
//	v1/snapshots/KEY/  the sequence of v1/snapshots is the last id that was allocated
//	    id         uvarint, at least 1                              (CreateSnapshot)
//	    kind       1 byte: 1 View, 2 Active, 3 Committed            (putSnapshot)
//	    parent     KEY; absent without a parent                     (putSnapshot)
//	    size       varint, bytes; of committed snapshots only       (CommitActive, putUsage)
//	    inodes     varint, always 0; of committed snapshots only    (plugins/snapshots/devmapper/snapshotter.go: Commit)
//	    createdat  time.Time.MarshalBinary, UTC                     (core/metadata/boltutil/helpers.go: WriteTimestamps)
//	    updatedat  like createdat
//	    labels/    NAME -> value, neither empty; absent without labels (WriteLabels)
//	v1/parents         uvarint id of the parent, 0, uvarint id of the child -> KEY of the child (parentKey)
//
// In containerd's own database, KEY is the name of a snapshot: NAMESPACE/NUMBER/NAME
// (core/metadata/snapshot.go: createKey). The id of a snapshot is used again only if its
// transaction was not committed.
//
// ROOT/POOL.db has the volumes (plugins/snapshots/devmapper/metadata.go). containerd keeps it open
// while it runs (pool_device.go: NewPoolDevice).
//
//	devices     name -> JSON of DeviceInfo                          (device_info.go, putObject)
//	device_ids  decimal id -> 1 byte: 0 free, 1 taken, 2 faulty     (markDeviceID)
//	            the sequence is the last id that was new            (getNextDeviceID)
//
// A device is named POOL-snap-ID after the id of its snapshot (snapshotter.go: getDeviceName). Its
// device id, from 1 to 16,777,214, is the volume's id in the pool, and differs from the snapshot's
// id. A free device id is used again, the lowest decimal string first (getNextDeviceID).
//
// # Contradictions
//
// No transaction spans both databases and the pool. A crash or a failed operation can leave a
// device without a snapshot (containerd issue 5646), a snapshot without a device, an active
// snapshot with a deactivated device (snapshotter.go: Commit), or a state that does not show
// whether the volume exists. Read returns all records, and a Problem for each contradiction between
// them. It fails for data of another layout, because a part of it could be misread.
package builtin
