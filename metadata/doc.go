// Package metadata is thinsnap's store: one bbolt file with the snapshots, the volume that each of
// them owns, the leases of device ids, and the trash. It is the truth: the kernel is made to agree
// with it, never the other way round. It knows nothing of the kernel.
//
// # Promises
//
// An Update that returned nil is on stable storage, and a View shows nothing that is not. An Update
// is atomic. Concurrent Updates share a bbolt transaction, and so the two syncs that it costs; each
// still has its own error, and one that fails does not fail the others.
//
// A commit that fails (no space, an I/O error) has changed nothing, and the store goes on. There is
// one exception: when the disk fails at the last sync, the transaction may exist after a crash or
// not. Then Update returns ErrInDoubt, and all later calls fail until the store is opened again.
// The same goes for Updates after a commit that found a damaged page (ErrCorrupt).
//
// # Caveats
//
// The function passed to Update may run more than once, and must do the same each time: it has no
// side effects outside of the Tx other than plain assignments of its results.
//
// A Tx is valid only within its function, and only on its goroutine. A function must not wait for
// anything: a View that stays open keeps old pages from being reused, and an Update within a View
// or an Update can deadlock.
//
// A function passed to ForEach or Children must not change the bucket that it iterates over.
//
// # Layout
//
// The bucket v1 holds these buckets; integers in keys are big-endian, records begin with a version
// byte.
//
//	meta       format, schema, pool, counters, first, next, client; counters and client of each key space
//	snapshots  key                                  -> snapshot
//	children   device u32, 'c', device of child u32 -> (empty): a volume that was created from the volume
//	           device u32, 'v', key of child        -> (empty): a View that shows it
//	devices    device u32                           -> owner
//	leases     first u32                            -> last u32
//	trash      device u32                           -> trash
//	bases      size u64, file system                -> base volume
package metadata
