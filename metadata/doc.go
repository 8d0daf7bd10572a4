// Package metadata is thinsnap's own store: one bbolt file that says which snapshots exist, which thin device each of them
// owns, which device ids have been handed out, and what waits to be deleted. It is the truth: the kernel is made to agree
// with it, never the other way round. It knows nothing of the kernel.
//
// # Promises
//
// An Update that returned nil is on stable storage, and a View shows nothing that is not. What one Update does, it does
// entirely or not at all. Concurrent Updates share a bbolt transaction, and so the two syncs that it costs; each still has
// its own error, and one that fails takes no other with it.
//
// A commit that fails (no space, an I/O error) has changed nothing, and the store goes on. There is one exception, which no
// program can hide: when the disk fails at the very last sync, nobody knows whether the transaction will be there after a
// crash. Then Update returns ErrInDoubt, and the store does nothing more until it is opened again. Nor does it change anything
// more when a commit came upon a damaged page (ErrCorrupt).
//
// # Caveats
//
// The function given to Update may run more than once, and must do the same each time: no side effects outside of the Tx
// other than plain assignments of its results.
//
// A Tx is valid only within its function, and only on the goroutine that was given it. A function must not wait for
// anything: a View that stays open keeps old pages from being reused, and an Update within a View or an Update can
// deadlock.
//
// What iterates (ForEach, Children) must not write to what it iterates over.
//
// # Layout
//
// The bucket v1 holds these buckets; integers in keys are big-endian, records begin with a version byte.
//
//	meta       format, schema, pool, counters, first, next
//	snapshots  key                                  -> snapshot
//	children   device u32, 'c', device of child u32 -> (empty): which volume was made from the volume
//	           device u32, 'v', key of child        -> (empty): which View shows it
//	devices    device u32                           -> owner
//	leases     first u32                            -> last u32
//	trash      device u32                           -> what it was
//	bases      size u64, file system                -> base volume
package metadata
