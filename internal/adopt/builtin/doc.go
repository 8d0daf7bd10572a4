// Package builtin reads the two databases of containerd's built-in devmapper snapshotter. It does
// not change them, and knows nothing of the pool: what the kernel has is compared elsewhere.
//
// # Layout
//
// It is that of containerd 1.3 to 2.4. Names of files are those of containerd 2.4.2; a varint is
// that of encoding/binary, whole values without anything behind them.
//
// ROOT/metadata.db has the snapshots (core/snapshots/storage/bolt.go). The snapshotter opens it
// with its first call, not when it starts (core/snapshots/storage/metastore.go: TransactionContext),
// and makes the buckets for the first snapshot (createBucketIfNotExists): until then it has none.
//
//	v1/snapshots/KEY/  the sequence of v1/snapshots is the last id that was given
//	    id         uvarint, at least 1                              (CreateSnapshot)
//	    kind       1 byte: 1 View, 2 Active, 3 Committed            (putSnapshot)
//	    parent     KEY; absent without a parent                     (putSnapshot)
//	    size       varint, bytes; of committed snapshots only       (CommitActive, putUsage)
//	    inodes     varint, always 0; of committed snapshots only    (plugins/snapshots/devmapper/snapshotter.go: Commit)
//	    createdat  time.Time.MarshalBinary, UTC                     (core/metadata/boltutil/helpers.go: WriteTimestamps)
//	    updatedat  likewise
//	    labels/    NAME -> value, neither empty; absent without labels (WriteLabels)
//	v1/parents         uvarint id of the parent, 0, uvarint id of the child -> KEY of the child (parentKey)
//
// KEY is what containerd's own database calls the name of a snapshot: NAMESPACE/NUMBER/NAME
// (core/metadata/snapshot.go: createKey). The id of a snapshot is used again only if its transaction
// was not committed.
//
// ROOT/POOL.db has the volumes (plugins/snapshots/devmapper/metadata.go). It is open as long as
// containerd runs (pool_device.go: NewPoolDevice).
//
//	devices     name -> JSON of DeviceInfo                          (device_info.go, putObject)
//	device_ids  decimal id -> 1 byte: 0 free, 1 taken, 2 faulty     (markDeviceID)
//	            the sequence is the last id that was new            (getNextDeviceID)
//
// A device is named POOL-snap-ID after the id of its snapshot (snapshotter.go: getDeviceName). Its
// device id, which is the volume's in the pool, is another number: from 1 to 16,777,214, and used
// again once it is free, the lowest decimal string first (getNextDeviceID).
//
// # Contradictions
//
// No transaction spans both databases and the pool. A crash, or an operation that failed, leaves a
// device without a snapshot (containerd issue 5646), a snapshot without a device, an active snapshot
// whose device is deactivated (snapshotter.go: Commit), or states that do not say whether the volume
// exists. Read returns what is stored, and a Problem for each
// contradiction within it. What cannot be read as above is an error: a part of it would be a guess.
package builtin
