package builtin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// metadataFile is the name of the database of the snapshots (snapshotter.go: metadataFileName).
const metadataFile = "metadata.db"

// limits bound the memory for the results.
type limits struct {
	records int // of each kind
	text    int // bytes of all keys, labels and messages
}

// Read reads both databases in rootPath, which is root_path in containerd's configuration, for the
// pool with that configuration's pool_name. Both are locked until it returns, so containerd cannot
// start. It reads up to 1,048,576 snapshots and as many devices, with 256 MiB of text, from files
// of up to 1 GiB each.
//
// Contradictions between readable records are Problems, not errors. Errors name the file, and have
// one of these classes:
//
//   - FailedPrecondition: a process, such as containerd, has a file open for longer than a second, or
//     the file is a symbolic link
//   - NotFound: a file does not exist
//   - InvalidArgument: the name is not valid for a pool
//   - NotImplemented: another kind of database, or an unknown bucket, field, state or value
//   - DataLoss: a file is damaged
//   - ResourceExhausted: a file exceeds the limits
//   - Unavailable: the disk fails
//   - PermissionDenied
func Read(ctx context.Context, rootPath, pool string) (Databases, error) {
	return read(ctx, rootPath, pool, limits{records: 1 << 20, text: 256 << 20})
}

func read(ctx context.Context, rootPath, pool string, l limits) (Databases, error) {
	// With a pool "metadata" both files would be one, and containerd would wait for its own lock.
	if pool == "" || strings.ContainsAny(pool, "/\x00") || pool+".db" == metadataFile {
		return Databases{}, fmt.Errorf("%q cannot be the name of a pool: see pool_name in containerd's configuration: %w",
			pool, errdefs.ErrInvalidArgument)
	}
	r := &reader{ctx: ctx, left: l.text, limits: l, dbs: Databases{Pool: pool, IDs: make(map[uint32]IDState)}}
	// Open the pool's database first, because a running containerd always has it open.
	devices, snaps := filepath.Join(rootPath, pool+".db"), filepath.Join(rootPath, metadataFile)
	err := view(devices, func(tx *bolt.Tx) error {
		if err := r.pool(tx); err != nil {
			return fmt.Errorf("read %s: %w", devices, err)
		}
		return view(snaps, func(tx *bolt.Tx) error {
			if err := r.metadata(tx); err != nil {
				return fmt.Errorf("read %s: %w", snaps, err)
			}
			return nil
		})
	})
	if err != nil {
		return Databases{}, err
	}
	compare(&r.dbs, r.links)
	return r.dbs, ctx.Err()
}

// A reader collects the records of the databases.
type reader struct {
	ctx    context.Context
	limits limits
	left   int // remaining bytes of text
	dbs    Databases
	links  map[link]string // v1/parents: the key of each child
}

func (r *reader) metadata(tx *bolt.Tx) error {
	v1, err := r.buckets(tx.Cursor().Bucket(), "", "v1")
	if err != nil || v1["v1"] == nil {
		return err
	}
	both, err := r.buckets(v1["v1"], "v1/", "snapshots", "parents")
	if err != nil {
		return err
	}
	if both["snapshots"] == nil || both["parents"] == nil {
		return damaged("bucket %q lacks a bucket", "v1")
	}
	r.dbs.LastID = both["snapshots"].Sequence()
	r.links = make(map[link]string)
	err = r.records(both["snapshots"], "v1/snapshots", func(k, _ []byte, nested *bolt.Bucket) error {
		if nested == nil {
			return unknown("it is not a bucket")
		}
		s, err := r.snapshot(string(k), nested)
		r.dbs.Snapshots = append(r.dbs.Snapshots, s)
		return err
	})
	if err != nil {
		return err
	}
	return r.records(both["parents"], "v1/parents", func(k, v []byte, nested *bolt.Bucket) error {
		if nested != nil {
			return unknown("it is a bucket")
		}
		l, err := decodeLink(k)
		r.links[l] = string(v)
		return errors.Join(err, r.take(len(v)))
	})
}

func (r *reader) snapshot(key string, b *bolt.Bucket) (Snapshot, error) {
	s := Snapshot{Key: key}
	found := make(map[string]bool)
	err := r.each(b, func(k, v []byte, nested *bolt.Bucket) (err error) {
		field := string(clip(k))
		found[field] = true
		if (nested != nil) != (field == "labels") {
			return unknown("field %q", field)
		}
		switch field {
		case "id":
			s.ID, err = decodeID(v)
		case "kind":
			s.Kind, err = decodeKind(v)
		case "parent":
			if s.Parent = string(v); len(v) == 0 {
				err = unknown("it is empty")
			}
		case "size":
			s.Bytes, err = decodeSize(v)
		case "inodes":
			s.Inodes, err = decodeSize(v)
		case "createdat":
			s.Created, err = decodeTime(v)
		case "updatedat":
			s.Updated, err = decodeTime(v)
		case "labels":
			s.Labels, err = r.labels(nested)
		default:
			return unknown("field %q", field)
		}
		if err != nil {
			return fmt.Errorf("field %q: %w", field, err)
		}
		return r.take(len(v))
	})
	for _, field := range []string{"id", "kind", "createdat", "updatedat"} {
		if err == nil && !found[field] {
			err = unknown("it lacks the field %q", field)
		}
	}
	return s, err
}

func (r *reader) labels(b *bolt.Bucket) (map[string]string, error) {
	var labels map[string]string
	err := r.each(b, func(k, v []byte, nested *bolt.Bucket) error {
		if nested != nil {
			return unknown("%q is a bucket", clip(k))
		}
		if labels == nil {
			labels = make(map[string]string)
		}
		labels[string(k)] = string(v)
		return r.take(len(k) + len(v))
	})
	return labels, err
}

func (r *reader) pool(tx *bolt.Tx) error {
	both, err := r.buckets(tx.Cursor().Bucket(), "", "devices", "device_ids")
	if err != nil || len(both) == 0 {
		return err // containerd creates the file before the buckets
	}
	if len(both) == 1 {
		return damaged("it lacks a bucket")
	}
	r.dbs.LastDevice = both["device_ids"].Sequence()
	err = r.records(both["devices"], "devices", func(k, v []byte, nested *bolt.Bucket) error {
		if nested != nil {
			return unknown("it is a bucket")
		}
		d, err := decodeDevice(string(k), v)
		r.dbs.Devices = append(r.dbs.Devices, d)
		return errors.Join(err, r.take(len(v)))
	})
	if err != nil {
		return err
	}
	return r.records(both["device_ids"], "device_ids", func(k, v []byte, nested *bolt.Bucket) error {
		if nested != nil {
			return unknown("it is a bucket")
		}
		id, err := decodeDeviceID(k)
		if err != nil {
			return err
		}
		r.dbs.IDs[id], err = decodeIDState(v)
		return err
	})
}

// buckets returns the known buckets in b, and fails if others exist.
func (r *reader) buckets(b *bolt.Bucket, path string, known ...string) (map[string]*bolt.Bucket, error) {
	found := make(map[string]*bolt.Bucket)
	err := r.each(b, func(k, _ []byte, nested *bolt.Bucket) error {
		for _, name := range known {
			if name == string(k) && nested != nil {
				found[name] = nested
				return nil
			}
		}
		if nested == nil {
			return unknown("key %q", path+string(clip(k)))
		}
		return unknown("bucket %q", path+string(clip(k)))
	})
	return found, err
}

// records calls fn for each entry of a bucket of records, and adds the name of the record to an
// error.
func (r *reader) records(b *bolt.Bucket, path string, fn func(k, v []byte, nested *bolt.Bucket) error) error {
	n := 0
	return r.each(b, func(k, v []byte, nested *bolt.Bucket) error {
		if n++; n > r.limits.records {
			return fmt.Errorf("%s has more records than the limit of %d: %w", path, r.limits.records,
				errdefs.ErrResourceExhausted)
		}
		err := r.take(len(k))
		if err == nil {
			err = fn(k, v, nested)
		}
		if err != nil {
			return fmt.Errorf("%s: %q: %w", path, clip(k), err)
		}
		return nil
	})
}

// each calls fn for each entry of a bucket: a key with a value, or a key with a nested bucket. It
// fails if the keys are not in order, because bbolt would not find them.
func (r *reader) each(b *bolt.Bucket, fn func(k, v []byte, nested *bolt.Bucket) error) error {
	var last []byte
	return b.ForEach(func(k, v []byte) error {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		if bytes.Compare(k, last) <= 0 {
			return damaged("key %q is not in order", clip(k))
		}
		last = k
		if v != nil {
			return fn(k, v, nil)
		}
		nested := b.Bucket(k)
		if nested == nil {
			return damaged("bucket %q cannot be found by its key", clip(k))
		}
		return fn(k, nil, nested)
	})
}

// take reduces the remaining bytes of text by n.
func (r *reader) take(n int) error {
	if r.left -= n; r.left < 0 {
		return fmt.Errorf("the file has more bytes of names and labels than the limit of %d: %w", r.limits.text,
			errdefs.ErrResourceExhausted)
	}
	return nil
}
