package metadb

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// A visit is called for an entry of a bucket that names the snapshotter, after the entries within.
type visit func(b *bolt.Bucket, path []string, e entry) error

// entry is an entry of a bucket. The slices are valid until the transaction changes something.
type entry struct {
	key      []byte
	value    []byte       // of a value; never nil
	bucket   *bolt.Bucket // nil for a value
	at       place
	named    bool // at this place there is the name of the snapshotter
	contents checksum
}

// walker reads a whole database.
type walker struct {
	ctx         context.Context
	snapshotter string
	visit       visit
	room        int64 // bytes that its keys and values may still have
}

// walk checks the version and the layout of the database, calls v for each entry that names the
// snapshotter, and returns the version and the digest. v must not change the database.
func walk(ctx context.Context, tx *bolt.Tx, snapshotter string, v visit) (version int64, sum checksum, err error) {
	version, err = readVersion(tx)
	if err != nil {
		return 0, checksum{}, err
	}
	w := &walker{ctx: ctx, snapshotter: snapshotter, visit: v, room: tx.Size()}
	sum, err = w.bucket(tx.Cursor().Bucket(), nil)
	return version, sum, err
}

// readVersion returns the version of the database (core/metadata/db.go, Init).
func readVersion(tx *bolt.Tx) (int64, error) {
	b := tx.Bucket([]byte(schema))
	if b == nil {
		if k, _ := tx.Cursor().First(); k != nil {
			return 0, fmt.Errorf("it has no bucket %q, but %q: it is not a meta.db of containerd: %w", schema, k,
				errdefs.ErrFailedPrecondition)
		}
		return 0, fmt.Errorf("it has no bucket %q: containerd has not used it yet: %w", schema,
			errdefs.ErrFailedPrecondition)
	}
	value := b.Get([]byte(keyVersion))
	version, n := binary.Varint(value)
	switch {
	case n <= 0 || n != len(value):
		return 0, fmt.Errorf("the version of the database is %x, which is no number: %w", value, errDamaged)
	case version < minVersion:
		return 0, fmt.Errorf("the database has version %d: start containerd 1.3 or newer once: %w", version,
			errdefs.ErrFailedPrecondition)
	case version > maxVersion:
		return 0, fmt.Errorf("the database has version %d, and %d is the last known one: use a newer thinsnap: %w", version,
			maxVersion, errdefs.ErrNotImplemented)
	}
	return version, nil
}

// bucket reads a bucket, and returns the digest of its contents.
func (w *walker) bucket(b *bolt.Bucket, path []string) (checksum, error) {
	if err := w.ctx.Err(); err != nil {
		return checksum{}, err
	}
	if len(path) > maxDepth {
		return checksum{}, fmt.Errorf("%s is deeper than containerd makes buckets: %w", show(path[:4], "..."), errDamaged)
	}
	var (
		sums     []checksum
		previous []byte
	)
	err := b.ForEach(func(key, value []byte) error {
		// Pages may be intact, and yet not in the order of a tree.
		if previous != nil && bytes.Compare(previous, key) >= 0 {
			return fmt.Errorf("%s is out of order: %w", show(path, string(key)), errDamaged)
		}
		previous = key
		if w.room -= int64(len(key) + len(value)); w.room < 0 {
			return fmt.Errorf("its keys and values are larger than the file: %w", errDamaged)
		}
		e := entry{key: key, value: value}
		if value == nil {
			if e.bucket = b.Bucket(key); e.bucket == nil {
				return fmt.Errorf("%s cannot be found by its key: %w", show(path, string(key)), errDamaged)
			}
		} else if found := b.Get(key); found == nil || !bytes.Equal(found, value) {
			return fmt.Errorf("%s cannot be found by its key: %w", show(path, string(key)), errDamaged)
		}
		if err := checkEntry(path, string(key), value == nil); err != nil {
			return err
		}
		e.at, e.named = namesIt(path, key, value, value == nil, w.snapshotter)
		if e.bucket != nil {
			var err error
			if e.contents, err = w.bucket(e.bucket, append(slices.Clip(path), string(key))); err != nil {
				return err
			}
		}
		sums = append(sums, e.digest())
		if e.named && w.visit != nil {
			return w.visit(b, path, e)
		}
		return nil
	})
	if err != nil {
		return checksum{}, err
	}
	return combine(b.Sequence(), sums), nil
}

// maxDepth is more than the path of any bucket of the layout, which is that of a sandbox's or a
// snapshot's labels or of what a later containerd puts below.
const maxDepth = 16

// show returns the path of an entry for an error.
func show(path []string, key string) string {
	shown := make([]string, 0, len(path)+1)
	for _, name := range append(slices.Clip(path), key) {
		if len(name) > maxShown {
			name = name[:maxShown] + "..."
		}
		if q := strconv.Quote(name); q != `"`+name+`"` || strings.Contains(name, "/") {
			name = q
		}
		shown = append(shown, name)
	}
	return strings.Join(shown, "/")
}

// maxShown is how many bytes of a name an error has.
const maxShown = 100
