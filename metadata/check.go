package metadata

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	bolt "go.etcd.io/bbolt"

	"github.com/thinsnap/thinsnap/metadata/boltfile"
)

// A Problem is an inconsistency within the store.
type Problem struct {
	Subject string // for example `snapshot "sha256:..."`, "device 12", "counters", "file"
	Text    string

	// Derived is true if Rebuild repairs the problem: in an index, a counter or a mark of lost
	// writes.
	Derived bool

	// Pages is true if a page of the file is damaged: then nothing else was checked.
	Pages bool
}

func (p Problem) String() string { return p.Subject + ": " + p.Text }

// Check compares all records, indexes, counters and pages of the store, and returns the problems.
// An error means that it could not read the store. Its time and memory grow with the store. Updates
// wait only while it reads the pages.
func (s *Store) Check(ctx context.Context) ([]Problem, error) {
	if err := s.exclusive.LockContext(ctx); err != nil {
		return nil, err
	}
	release := sync.OnceFunc(s.exclusive.Unlock)
	defer release()

	btx, err := s.begin(false)
	if err != nil {
		return nil, err
	}
	defer btx.Rollback() //nolint:errcheck // a read transaction has nothing to lose
	if err := s.gate.wait(ctx, btx.ID()); err != nil {
		return nil, err
	}

	// This reads bbolt's free list, which a commit changes: so it holds the lock.
	problems, err := s.checkPages(ctx, btx)
	release()
	if err != nil || len(problems) > 0 {
		return problems, err // damaged pages make records meaningless
	}
	tx, err := s.tx(btx)
	if err != nil {
		return nil, err
	}
	c := &checker{ctx: ctx, tx: tx}
	if err := c.run(); err != nil {
		return nil, fmt.Errorf("check %s: %w", s.path, err)
	}
	return c.problems, nil
}

func (s *Store) checkPages(ctx context.Context, btx *bolt.Tx) ([]Problem, error) {
	info, err := s.file.Stat()
	if err != nil {
		return nil, err
	}
	// bbolt must not read damaged pages. Under the lock nothing is written, so the file is as the
	// transaction sees it.
	err = corrupt(boltfile.Check(s.file, info.Size(), func([]string) bool { return true }))
	if errors.Is(err, ErrCorrupt) {
		return []Problem{{Subject: "file", Text: err.Error(), Pages: true}}, nil
	}
	if err != nil {
		return nil, err
	}
	var problems []Problem
	// Drain the channel even if ctx has ended: bbolt cannot end the transaction before.
	for err := range btx.Check() {
		problems = append(problems, Problem{Subject: "file", Text: err.Error(), Pages: true})
	}
	return problems, ctx.Err()
}

// A checker collects the contents of the store, and its problems.
type checker struct {
	ctx      context.Context
	tx       *Tx
	problems []Problem

	counted  counters
	inSpace  map[string]*counters // of the key spaces other than the default one
	snapshot map[string]Snapshot
	// incomplete is true if a snapshot or its parent cannot be read: children in the index may then
	// be of such a snapshot.
	incomplete bool
	// children are the keys that belong in the index of children; after checkChildren, those that it
	// lacks.
	children map[string]bool
	// strayChildren are keys of the index of children that belong to no snapshot.
	strayChildren [][]byte
	owners        map[uint32]Owner // according to the records, not the index
	strayMarks    [][]byte         // keys of lost-write marks without an active snapshot
	disputed      bool             // two records own the same device id
	first         uint32
	next          uint32
	adopted       bool // ids below FirstInForeign may be owned
}

func (c *checker) run() error {
	c.snapshot = make(map[string]Snapshot)
	c.inSpace = make(map[string]*counters)
	c.children = make(map[string]bool)
	c.owners = make(map[uint32]Owner)
	for _, step := range []func() error{
		c.checkPool, c.readSnapshots, c.checkSnapshots, c.checkAncestry, c.checkBases, c.checkTrash, c.checkKept,
		c.checkWritesLost, c.checkLeases, c.checkOwners, c.checkChildren, c.checkCounters,
	} {
		if err := step(); err != nil {
			return err
		}
		if err := c.ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) report(subject, format string, args ...any) {
	c.problems = append(c.problems, Problem{Subject: ShowText(subject), Text: ShowText(fmt.Sprintf(format, args...))})
}

// reportDerived reports a problem that Rebuild repairs.
func (c *checker) reportDerived(subject, format string, args ...any) {
	c.problems = append(c.problems, Problem{
		Subject: ShowText(subject), Text: ShowText(fmt.Sprintf(format, args...)), Derived: true,
	})
}

// each calls fn for each pair of a bucket, and stops when the context ends.
func (c *checker) each(b *bolt.Bucket, fn func(k, v []byte)) error {
	return b.ForEach(func(k, v []byte) error {
		fn(k, v)
		return c.ctx.Err()
	})
}

func (c *checker) own(device uint32, o Owner) {
	if other, taken := c.owners[device]; taken {
		c.report(fmt.Sprintf("device %d", device), "is owned by %s and by %s", other, o)
		c.disputed = true
		return
	}
	c.owners[device] = o
}

func (c *checker) checkPool() error {
	pool, err := c.tx.Pool()
	c.adopted = len(pool.Existing.Adopted) > 0
	if err != nil && c.tx.buckets.meta.Get(keyPool) != nil {
		c.report("pool", "%v", err)
	}
	for _, space := range append(c.tx.KeySpaces(), "") {
		if _, err := c.tx.Client(space); err != nil && c.tx.buckets.meta.Get(keyClientOf(space)) != nil {
			c.report(strings.TrimSpace("client "+space), "%v", err)
		}
	}
	return nil
}

func (c *checker) checkCounters() error {
	c.compareCounters("", c.counted)
	for _, space := range c.tx.KeySpaces() {
		c.compareCounters(space, *c.countedIn(space))
	}
	return nil
}

func (c *checker) compareCounters(space string, counted counters) {
	subject := "counters"
	if space != "" {
		subject += " of client " + space
	}
	stored, err := c.tx.countersOf(space)
	switch {
	case err != nil:
		c.reportDerived(subject, "%v", err)
	case stored != counted:
		c.reportDerived(subject, "say views %d, active %d, committed %d, trash %d, but there are views %d, active %d, "+
			"committed %d, trash %d",
			stored.views, stored.active, stored.committed, stored.trash,
			counted.views, counted.active, counted.committed, counted.trash)
	}
}

func (c *checker) countedIn(space string) *counters {
	if c.inSpace[space] == nil {
		c.inSpace[space] = &counters{}
	}
	return c.inSpace[space]
}
