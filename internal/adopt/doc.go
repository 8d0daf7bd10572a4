// Package adopt has thinsnap take over the snapshots of containerd's built-in devmapper snapshotter
// (the built-in) without a copy, and can give them back. Package plan decides the outcome of each
// snapshot. This package executes the plan, with containerd and thinsnap stopped.
//
// # Steps
//
// From the first change until the end, ROOT/adopt has journal.json, which keeps thinsnap from using
// the root. A complete adoption has adopted.json instead. Each step is on stable storage before the
// next one begins.
//
//	1  copy the three databases; rehearse step 7 on a copy; build store.db, thinsnap's store
//	2  write journal.json
//	3  have the pool zero new blocks
//	4  rename POOL.db to POOL.db.adopted, with a text in its place
//	5  the same for metadata.db
//	6  deactivate the built-in's idle mapped devices
//	7  rename the snapshotter in meta.db, in one transaction: the point of no return
//	8  copy store.db to ROOT/metadata.db
//	9  write adopted.json, then remove journal.json
//
// Undo, after any of them:
//
//	u1  set the phase in journal.json to "back"
//	u2  remove thinsnap's mapped devices, and the volumes that thinsnap made
//	u3  rename the snapshotter back in the present meta.db, in one transaction
//	u4  activate the mapped devices of step 6
//	u5  put back metadata.db, and then POOL.db
//	u6  remove ROOT/metadata.db, adopted.json and then journal.json
//
// # Interruptions
//
// If a run is killed after a step, three things can happen before the next one: containerd starts
// with the built-in or with thinsnap as its proxy plugin; its garbage collector runs, and clients
// pull images for other snapshotters; Run or Undo is called again.
//
//	after    built-in          thinsnap  names in meta.db  Run            Undo
//	1        works             starts    old               starts over    has nothing to do
//	2, 3     works             refuses   old               starts over    removes the journal
//	4 to 6   does not start    refuses   old               continues      u1, u4 to u6
//	7, 8     does not start    refuses   new               continues      u1 to u6
//	9        does not start    works     new               is complete    u1 to u6
//	u1, u2   does not start    refuses   new or old        refuses        continues
//	u3, u4   does not start    refuses   old               refuses        continues
//	u5       works             refuses   old               refuses        continues
//	u6       works             starts    old               starts over    has nothing to do
//
// The collector removes a running snapshotter's snapshots if meta.db has no names for them. So in
// each row at most one snapshotter that has the snapshots runs, and meta.db has its names. (In rows
// 1 and u6 thinsnap does not have them.) The collector may also remove names of snapshots that
// nothing refers to; the next snapshotter that runs removes these snapshots. Names that an image, a
// container or a lease refers to remain, even if their snapshotter does not run.
//
// The built-in opens POOL.db when it starts. If the file were missing, it would create a new one
// and allocate ids that are in use, so the name is never free. bbolt does not write to a file that
// is not a database. containerd 1.x then runs without the built-in. containerd 2.x does not open
// meta.db until its configuration no longer has the built-in. In rows 4 to 6, checksums prove that
// the renamed databases are unchanged.
//
// # Locks
//
// The root directory is locked against thinsnap. The three databases are locked for reading from
// the start, so containerd waits if it starts. A waiting containerd has opened the file under its
// old name, and would use it after step 4. So step 4 ends with a lease of that file, which the
// kernel grants only if no other process has it open. In step 7 bbolt takes its own lock of
// meta.db. If containerd gets the lock first, the run fails, and the next one continues.
package adopt
