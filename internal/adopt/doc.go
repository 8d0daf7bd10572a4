// Package adopt has thinsnap take over the snapshots of containerd's built-in devmapper snapshotter
// where they are, and give them back. Package plan decides what becomes of each; this one executes the
// plan, with containerd and thinsnap stopped.
//
// # Steps
//
// ROOT/adopt has journal.json while something is under way, which keeps thinsnap from the root; then
// adopted.json. Each step lasts when the next begins.
//
//	1  copies of the three databases; a rehearsal of 7 on a copy; store.db, thinsnap's store
//	2  journal.json
//	3  the pool zeroes new blocks
//	4  POOL.db becomes POOL.db.adopted, with a text in its place
//	5  metadata.db likewise
//	6  idle mapped devices of the built-in are deactivated
//	7  one transaction renames the snapshotter in meta.db: the point of no return
//	8  a copy of store.db becomes ROOT/metadata.db
//	9  adopted.json, and then no journal.json
//
// Undo, from any of them:
//
//	u1  journal.json says "back"
//	u2  thinsnap's mapped devices and its own volumes are removed
//	u3  one transaction renames the snapshotter back in meta.db as it is then
//	u4  the mapped devices of 6 are activated
//	u5  metadata.db, and then POOL.db, are put back
//	u6  ROOT/metadata.db, adopted.json and then journal.json are removed
//
// # If it is killed
//
// What can happen after each step, before the next: containerd starts with the built-in, or with
// thinsnap as its proxy; its collector runs, and images are pulled for other snapshotters; Run or Undo
// is called again.
//
//	after    built-in          thinsnap  names in meta.db  Run            Undo
//	1        works             starts    old               begins again   nothing to undo
//	2, 3     works             refuses   old               begins again   removes the journal
//	4 to 6   does not start    refuses   old               goes on        u4 to u6
//	7, 8     does not start    refuses   new               goes on        u1 to u6
//	9        does not start    works     new               is complete    u1 to u6
//	u1, u2   does not start    refuses   new               refuses        goes on
//	u3, u4   does not start    refuses   old               refuses        goes on
//	u5       works             refuses   old               refuses        goes on
//	u6       works             starts    old               begins again   nothing to undo
//
// Containerd's collector removes the snapshots of a running snapshotter that meta.db does not name for
// it. In each row at most one of the two runs, and it is the one that meta.db names. Meanwhile the
// collector may remove names from meta.db, of snapshots that nothing refers to: the next snapshotter
// that runs removes them. What an image, a container or a lease refers to stays, whether its
// snapshotter runs or not.
//
// The built-in opens POOL.db when it starts. In the place of a database it would make a new one, and
// hand out ids that are in use: so at no time is there no file. bbolt does not write to a file that is
// none of its own. containerd 1.x then runs without the built-in; 2.x does not open meta.db, and works
// again when its configuration no longer has the built-in. The databases that were put aside cannot
// have changed in rows 4 to 6, which their checksums prove.
//
// # Locks
//
// The root directory is locked against thinsnap. The three databases are locked for reading from the
// beginning: containerd that starts meanwhile waits. What it has opened then is the file with the old
// name, and it would go on with it after step 4: so this step ends with a lease of that file, which
// the kernel gives only if no other process has it open. For step 7 bbolt locks meta.db by itself: if
// containerd is faster, the run fails, and the next one goes on.
package adopt
