// Package metadata is thinsnap's store: one bbolt file with the snapshots, the volume that each of them owns, the
// leases of device ids, and the trash. The store is the truth, and the kernel is made to agree with it. This package
// never calls the kernel's device-mapper.
//
// # Promises
//
// When Update returns nil, its changes are on stable storage. A View shows only such changes. Updates are atomic.
// Concurrent Updates share a bbolt transaction and its two syncs. Each has its own error, and does not fail the others.
//
// A failed commit (no space, an I/O error) changes nothing, and the store stays usable. There is one exception. If the
// disk fails at the last sync, the transaction may or may not exist after a crash. Then Update returns ErrInDoubt, and
// all later calls fail until the store is opened again. The same holds for Updates after a commit that found a damaged
// page (ErrCorrupt).
//
// # Caveats
//
// The function passed to Update may run more than once, and must do the same each time. It must have no side effects
// outside the Tx, except plain assignments of its results.
//
// A Tx is valid only within its function, on its goroutine. The function must not wait for anything: an open View keeps
// old pages from being reused, and an Update within a View or an Update can deadlock.
//
// A function passed to ForEach or Children must not change the bucket that it iterates over.
//
// # Layout
//
// The bucket v1 holds these buckets. Integers in keys are big-endian. Records begin with a version byte.
//
//	meta       format, schema, pool, counters, first, next, client, told, "kept " + device u32, and
//	           "writes lost " + device u32 -> key; counters, client and told of each further key space
//	snapshots  key                                  -> snapshot
//	children   device u32, 'c', device of child u32 -> (empty): a volume that is a snapshot of the volume
//	           device u32, 'v', key of child        -> (empty): a View that shows it
//	devices    device u32                           -> owner
//	leases     first u32                            -> last u32, and a byte 1 for a Written lease
//	trash      device u32                           -> trash
//	bases      size u64, file system                -> base volume
package metadata
