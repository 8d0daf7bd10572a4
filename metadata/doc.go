// Package metadata is thinsnap's store: one bbolt file with the snapshots, the volumes that they own, the leases of
// device ids, and the trash. The store is the truth, and the kernel is made to agree with it. This package never calls
// the kernel's device-mapper.
//
// # Promises
//
// When Update returns nil, its changes are on stable storage. A View shows only such changes. Updates are atomic.
// Concurrent Updates share a bbolt transaction and its two syncs. An Update whose function fails does not fail the
// others; a failed commit fails all of them.
//
// A failed commit (no space, an I/O error) changes nothing, and the store stays usable, with two exceptions. If the
// disk fails at the last sync, the transaction may or may not exist after a crash. That Update returns ErrInDoubt, and
// so do all later Updates and Views until the store is opened again. After a commit that found a damaged page
// (ErrCorrupt), later Updates return ErrInDoubt too, but Views work.
//
// # Caveats
//
// The function passed to Update may run more than once, and must do the same each time. It must have no side effects
// outside the Tx, except plain assignments of its results.
//
// A Tx is valid only within its function, on its goroutine. The function must not wait for anything: an open View keeps
// old pages from being reused, and an Update within a View or an Update can deadlock.
//
// A function passed to ForEach, ForEachIn or Children must not create, change or remove snapshots.
//
// # Layout
//
// The bucket v1 holds these buckets. Integers in keys are big-endian. Records begin with a version byte, except
// leases and the entries format, schema, first, next and "writes lost". A further key space is one other than the
// default one.
//
//	meta       format, schema, pool, first, next, "kept " + device u32, "writes lost " + device u32 -> key;
//	           counters, client, told, and these three + " " + name for each further key space
//	snapshots  key                                  -> snapshot
//	children   device u32, 'c', device of child u32 -> (empty): a volume that is a snapshot of the volume
//	           device u32, 'v', key of child        -> (empty): a View that shows it
//	devices    device u32                           -> owner
//	leases     first u32                            -> last u32, and a byte 1 for a Written lease
//	trash      device u32                           -> trash
//	bases      size u64, file system                -> base volume
package metadata
