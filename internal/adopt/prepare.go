package adopt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/thinsnap/thinsnap/internal/adopt/metadb"
	"github.com/thinsnap/thinsnap/internal/adopt/plan"
	"github.com/thinsnap/thinsnap/metadata"
)

// prepare makes the backups, the rehearsal and the store, which change nothing outside of
// ROOT/adopt. Then it writes the journal.
func (a *adoption) prepare(ctx context.Context, r *Record, p plan.Plan) (err error) {
	if err := removeExcept(a.dir, openName); err != nil { // left by a killed run
		return err
	}
	if err := a.requireRoom(*r, p); err != nil {
		return err
	}
	// gofail: var adoptBeforeBackup struct{}
	a.report("copy the databases to " + a.path(backupName))
	if err := a.backUp(r); err != nil {
		return err
	}
	// gofail: var adoptAfterBackup struct{}
	a.report("rename the snapshotter in a copy of containerd's database")
	growth, err := a.rehearse(ctx, *r, p.LeaveOut)
	if err != nil {
		return err
	}
	// gofail: var adoptAfterRehearsal struct{}
	a.report("build thinsnap's store")
	size, err := a.build(ctx, p.Adoption)
	if err != nil {
		return err
	}
	// gofail: var adoptAfterBuild struct{}
	for dir, bytes := range map[string]int64{
		filepath.Dir(r.metaPath()): growth + size, r.RootPath: slack, a.root: size,
	} {
		if err := requireRoom(dir, bytes+slack); err != nil {
			return err
		}
	}
	r.Device = Pool{
		MappedDevice: p.Adoption.Pool.Existing.MappedDevice, UUID: p.Adoption.Pool.Existing.UUID,
		BlockBytes: p.Adoption.Pool.BlockSize,
	}
	if r.LeaveOut, err = toJSON(p.LeaveOut); err != nil {
		return err
	}
	r.count(p)
	idle, err := a.idle(p.Idle)
	if err != nil {
		return err
	}
	r.Idle = append(r.Idle, idle...)
	if err := a.lockStore(ctx); err != nil {
		return err
	}
	if err := r.put(a.dir, openName); err != nil {
		return err
	}
	a.record = *r
	// gofail: var adoptAfterJournal struct{}
	return nil
}

// slack is the space for writes that are not counted, in bytes.
const slack = 1 << 20

// requireRoom fails if the root's disk has too little space for prepare.
func (a *adoption) requireRoom(r Record, p plan.Plan) error {
	need := int64(slack) + int64(len(p.Rows))*4096 // more than the size of a record
	for path, copies := range map[string]int64{r.poolPath(): 1, r.snapshotsPath(): 1, r.metaPath(): 3} {
		info, err := os.Stat(path)
		if err != nil {
			return explain("look at", path, err)
		}
		need += copies * info.Size()
	}
	return requireRoom(a.dir, need)
}

func (a *adoption) backUp(r *Record) error {
	dir := a.path(backupName)
	ofBuiltin := filepath.Join(dir, builtinDir)
	if err := os.MkdirAll(ofBuiltin, 0o700); err != nil {
		return explain("make", ofBuiltin, err)
	}
	r.SHA256 = make(map[string]string)
	for _, path := range []string{r.poolPath(), r.snapshotsPath()} {
		name := filepath.Base(path)
		sum, err := copyFile(path, filepath.Join(ofBuiltin, name))
		if err != nil {
			return err
		}
		r.SHA256[name] = sum
	}
	if _, err := copyFile(r.metaPath(), filepath.Join(dir, filepath.Base(r.metaPath()))); err != nil {
		return err
	}
	return explain("make", dir, errors.Join(syncDirectory(ofBuiltin), syncDirectory(dir)))
}

// rehearse renames the snapshotter in a copy of containerd's database, and returns by how many
// bytes the copy has grown on its disk.
func (a *adoption) rehearse(ctx context.Context, r Record, leave metadb.LeaveOut) (growth int64, err error) {
	path := a.path("rehearsal.db")
	if _, err := copyFile(filepath.Join(a.path(backupName), filepath.Base(r.metaPath())), path); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, explain("remove", path, os.Remove(path))) }()
	before, err := allocated(path)
	if err != nil {
		return 0, err
	}
	all := func(metadb.Names) (metadb.LeaveOut, error) { return leave, nil }
	if err := rename(ctx, path, r.From, r.Proxy, all); err != nil {
		return 0, fmt.Errorf("rehearsal, with containerd's database unchanged: %w", err)
	}
	after, err := allocated(path)
	return after - before, err
}

// build makes the store in ROOT/adopt, and returns its size on its disk.
func (a *adoption) build(ctx context.Context, adoption metadata.Adoption) (bytes int64, err error) {
	path := a.path(storeName)
	store, err := metadata.Open(path, metadata.Options{})
	if err != nil {
		return 0, err
	}
	err = store.Update(ctx, func(tx *metadata.Tx) error { return tx.Adopt(adoption) })
	if err = errors.Join(err, store.Close()); err != nil {
		return 0, fmt.Errorf("build the store: %w", err)
	}
	return allocated(path)
}

// lockStore keeps other thinsnap processes from the pool.
func (a *adoption) lockStore(ctx context.Context) error {
	store, err := metadata.Open(a.path(storeName), metadata.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	return errors.Join(a.machine.lock(ctx, store), store.Close())
}

func (r *Record) count(p plan.Plan) {
	for _, row := range p.Rows {
		switch row.Becomes {
		case plan.Adopted, plan.AdoptedView:
			r.Snapshots++
		case plan.LeftOut:
			r.Left++
		case plan.Kept, plan.Dropped, plan.Foreign:
		}
	}
	r.Kept = len(p.Adoption.Kept)
}
