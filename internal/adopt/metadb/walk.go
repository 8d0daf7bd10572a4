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

// A visit is called for each entry that names a snapshotter, after the entries within it.
type visit func(b *bolt.Bucket, path []string, e entry) error

// entry is an entry of a bucket. Its slices are valid until the transaction changes the database.
type entry struct {
	key      []byte
	value    []byte       // of a value; never nil
	bucket   *bolt.Bucket // nil for a value
	at       place
	name     string   // the snapshotter that it names, if it is one of the walker's
	contents checksum // of a bucket
}

// idle returns true if Rename can give the entry's name to another snapshotter: it is an empty
// bucket, which containerd does not remove, or the default of a namespace.
func (e *entry) idle() bool {
	if e.bucket != nil {
		key, _ := e.bucket.Cursor().First()
		return key == nil
	}
	return string(e.key) == labelDefault
}

// walker reads a whole database.
type walker struct {
	ctx          context.Context
	snapshotters []string
	visit        visit
	room         int64 // the remaining bytes for keys and values
}

// walk checks the version and the layout of the database, and calls v for each entry that names one
// of the snapshotters. It returns the version and the digest. v must not change the database.
func walk(ctx context.Context, tx *bolt.Tx, v visit, snapshotters ...string) (version int64, sum checksum, err error) {
	version, err = readVersion(tx)
	if err != nil {
		return 0, checksum{}, err
	}
	w := &walker{ctx: ctx, snapshotters: snapshotters, visit: v, room: tx.Size()}
	b := tx.Cursor().Bucket()
	sums, err := w.bucket(b, nil)
	return version, combine(b.Sequence(), sums), err
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
		return 0, fmt.Errorf("the version of the database is %x, which is not a number: %w", value, errDamaged)
	case version < minVersion:
		return 0, fmt.Errorf("the database has version %d: start containerd 1.3 or newer once: %w", version,
			errdefs.ErrFailedPrecondition)
	case version > maxVersion:
		return 0, fmt.Errorf("the database has version %d, and %d is the last known one: use a newer thinsnap: %w", version,
			maxVersion, errdefs.ErrNotImplemented)
	}
	return version, nil
}

// bucket reads a bucket, and returns the digests of its entries.
func (w *walker) bucket(b *bolt.Bucket, path []string) ([]checksum, error) {
	if err := w.ctx.Err(); err != nil {
		return nil, err
	}
	if len(path) > maxDepth {
		return nil, fmt.Errorf("%s is deeper than containerd's buckets: %w", show(path[:4], "..."), errDamaged)
	}
	var (
		sums     []checksum
		merged   []checksum // of the entries of all buckets with a snapshotter's name
		previous []byte
	)
	err := b.ForEach(func(key, value []byte) error {
		// Intact pages may have keys in the wrong order.
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
		if at, name, ok := nameIn(path, key, value, value == nil); ok && slices.Contains(w.snapshotters, string(name)) {
			e.at, e.name = at, string(name)
		}
		sum, err := w.entry(path, &e)
		switch {
		case err != nil:
			return err
		case e.at == bucketName:
			merged = append(merged, sum...)
		default:
			sums = append(sums, sum...)
		}
		if e.name != "" && w.visit != nil {
			return w.visit(b, path, e)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(merged) > 0 {
		e := entry{bucket: b, at: bucketName, name: w.snapshotters[0], contents: combine(0, merged)}
		sums = append(sums, e.digest())
	}
	return sums, nil
}

// entry reads the entries within an entry. It returns its digest; the digests of the entries in a
// bucket with a snapshotter's name; or none for an entry that the digest leaves out.
func (w *walker) entry(path []string, e *entry) ([]checksum, error) {
	if e.bucket != nil {
		within, err := w.bucket(e.bucket, append(slices.Clip(path), string(e.key)))
		if err != nil || e.at == bucketName || len(within) == 0 {
			return within, err
		}
		e.contents = combine(e.bucket.Sequence(), within)
	}
	if w.varies(path, e) {
		return nil, nil
	}
	return []checksum{e.digest()}, nil
}

// varies returns true if Rename may find, make or remove the entry. That is the default of a
// namespace, or a link between a snapshot that is left out and its parent or container.
func (w *walker) varies(path []string, e *entry) bool {
	if len(path) < 3 || path[0] != schema {
		return false
	}
	inSnapshot := path[2] == keySnapshots && len(path) >= 5 && slices.Contains(w.snapshotters, path[3])
	switch {
	case len(path) == 3 && path[2] == keyLabels:
		return string(e.key) == labelDefault
	case len(path) == 5 && inSnapshot:
		return string(e.key) == keyChildren
	case len(path) == 6 && inSnapshot:
		return e.name != "" && string(e.key) == labelRef+e.name+parentSuffix
	case len(path) == 5 && path[2] == keyContainers:
		return e.name != "" && string(e.key) == labelRef+e.name+containerSuffix
	}
	return false
}

// maxDepth is larger than the depth of any bucket in the layout. The deepest are the labels of a
// snapshot; a later containerd may add deeper ones.
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

// maxShown limits the bytes of a name in an error.
const maxShown = 100
