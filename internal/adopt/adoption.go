package adopt

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/internal/adopt/plan"
	"github.com/thinsnap/thinsnap/internal/rootdir"
	"github.com/thinsnap/thinsnap/metadata"
)

// An adoption is one run, or one undo, in a locked root.
type adoption struct {
	machine
	root   string
	dir    string // ROOT/adopt
	lock   *os.File
	report func(step string)
	record Record // Phase is empty if the root has no record

	// The databases, while they are held.
	poolDB, snapshotsDB, metaDB *held
}

// begin locks a root, which it creates if it is missing, and reads its record.
func begin(root string, report func(step string), m machine) (_ *adoption, err error) {
	if err := rootdir.Prepare(root); err != nil {
		return nil, err
	}
	a := &adoption{machine: m, root: root, dir: rootdir.Adoption(root), report: report}
	if a.lock, err = lockRoot(root, unix.LOCK_EX); err != nil {
		return nil, err
	}
	if a.record, err = Read(root); errdefs.IsNotFound(err) {
		err = nil
	}
	if err == nil {
		err = os.MkdirAll(a.dir, 0o700)
	}
	if err == nil {
		// The journal of a killed run, and its directory, may not be on the disk yet.
		err = syncAbove(filepath.Join(a.dir, openName))
	}
	if err != nil {
		return nil, errors.Join(explain("prepare", a.dir, err), a.lock.Close())
	}
	return a, nil
}

func (a *adoption) end() error {
	return errors.Join(a.releaseDatabases(), a.lock.Close())
}

// releaseDatabases lets containerd open its databases.
func (a *adoption) releaseDatabases() error {
	return errors.Join(a.poolDB.release(), a.snapshotsDB.release(), a.metaDB.release())
}

func (a *adoption) path(name string) string { return filepath.Join(a.dir, name) }

// poolPath and snapshotsPath return the paths of the built-in's databases; see package builtin.
func (r Record) poolPath() string      { return filepath.Join(r.RootPath, r.Pool+".db") }
func (r Record) snapshotsPath() string { return filepath.Join(r.RootPath, "metadata.db") }

func (r Record) metaPath() string {
	return filepath.Join(r.ContainerdRoot, "io.containerd.metadata.v1.bolt", "meta.db")
}

func newRecord(o plan.Options) Record {
	r := Record{
		Format: recordFormat, ID: rand.Text(), Phase: Forward, Began: now(), ContainerdRoot: o.ContainerdRoot,
		RootPath: o.RootPath, Pool: o.Pool, From: o.From, Proxy: o.Proxy,
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		r.Thinsnap = info.Main.Version
	}
	return r
}

// requireSame fails if the options differ from those of the unfinished adoption.
func (r Record) requireSame(o plan.Options) error {
	for _, c := range []struct{ name, begun, now string }{
		{"root of containerd", r.ContainerdRoot, o.ContainerdRoot},
		{"root_path", r.RootPath, o.RootPath},
		{"pool_name", r.Pool, o.Pool},
		{"snapshotter", r.From, o.From},
		{"proxy plugin", r.Proxy, o.Proxy},
	} {
		if c.begun != c.now {
			return fmt.Errorf("the unfinished adoption is of the %s %q, not %q: complete it with that, "+
				"or undo it with `--undo`: %w", c.name, c.begun, c.now, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// holdAll holds the three databases, so that containerd cannot start.
func (a *adoption) holdAll(r Record) (err error) {
	for _, c := range []struct {
		h    **held
		path string
	}{
		// The order in which containerd opens them.
		{&a.poolDB, r.poolPath()}, {&a.snapshotsDB, r.snapshotsPath()}, {&a.metaDB, r.metaPath()},
	} {
		if *c.h, err = hold(c.path); err != nil {
			return err
		}
	}
	return nil
}

// requireNoStore fails if the root has a store.
func (a *adoption) requireNoStore() error {
	path := rootdir.Store(a.root)
	found, err := exists(path)
	if err != nil || !found {
		return explain("look for", path, err)
	}
	return fmt.Errorf("%s exists: thinsnap already uses this root: choose another one, or remove its snapshots with "+
		"`thinsnap pool destroy`: %w", path, errdefs.ErrAlreadyExists)
}

func keysOf(ctx context.Context, store *metadata.Store) (map[string]bool, error) {
	keys := make(map[string]bool)
	err := store.View(ctx, func(tx *metadata.Tx) error {
		clear(keys)
		return tx.ForEach(func(s metadata.Snapshot) error { keys[s.Key] = true; return nil })
	})
	return keys, err
}
