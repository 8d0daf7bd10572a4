package metadb

import (
	"cmp"
	"context"
	"encoding/hex"
	"maps"
	"slices"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/thinsnap/thinsnap/metadata/boltfile"
)

// Read returns everything in the database that names the snapshotter, which may be nothing. It does
// not change the file. It reads the whole file, so its memory and time grow with it. Its errors
// have one of these classes:
//
//   - FailedPrecondition: a process has the database open for longer than a second, or the file is
//     older than containerd 1.3, not a meta.db, or a symbolic link
//   - NotImplemented: a newer containerd made the file, or it has an unknown kind of object
//   - DataLoss: the file is damaged
//   - Unavailable: the file cannot be read
//   - NotFound: the file does not exist
//   - InvalidArgument: the name is not valid for a snapshotter
//   - PermissionDenied
func Read(ctx context.Context, path, snapshotter string) (Names, error) {
	if err := checkName(snapshotter); err != nil {
		return Names{}, err
	}
	var n Names
	err := boltfile.View(path, func(tx *bolt.Tx) (err error) {
		n, err = read(ctx, tx, snapshotter)
		return err
	})
	if err != nil {
		return Names{}, explain("read", path, err)
	}
	return n, nil
}

// read returns the Names of the snapshotter. The digest also leaves out the other name.
func read(ctx context.Context, tx *bolt.Tx, snapshotter string, other ...string) (Names, error) {
	c := collector{spaces: make(map[string]*Namespace), problems: make(map[string][]Problem)}
	version, sum, err := walk(ctx, tx, func(b *bolt.Bucket, path []string, e entry) error {
		if e.name != snapshotter {
			return nil
		}
		return c.take(b, path, e)
	}, append(other, snapshotter)...)
	if err != nil {
		return Names{}, err
	}
	n := Names{Snapshotter: snapshotter, Version: version, Digest: hex.EncodeToString(sum[:])}
	for _, name := range slices.Sorted(maps.Keys(c.spaces)) {
		ns := c.spaces[name]
		sortLabels(ns.Labels)
		n.Namespaces = append(n.Namespaces, *ns)
		n.Problems = append(append(n.Problems, c.problems[name]...), ns.problems()...)
	}
	return n, nil
}

func sortLabels(labels []Label) {
	slices.SortFunc(labels, func(a, b Label) int {
		return cmp.Or(strings.Compare(a.Object, b.Object), strings.Compare(a.Key, b.Key))
	})
}

// collector builds Names from the entries that name the snapshotter.
type collector struct {
	spaces   map[string]*Namespace
	problems map[string][]Problem // of single records, by namespace
}

func (c *collector) take(b *bolt.Bucket, path []string, e entry) error {
	object := path[min(len(path), 2):] // within the namespace
	if path[0] != schema {
		object = path[1:]
	}
	name := namespaceOf(path)
	ns := c.spaces[name]
	if ns == nil {
		ns = &Namespace{Name: name}
		c.spaces[name] = ns
	}
	switch {
	case e.at == bucketName && object[0] == keySnapshots:
		ns.Bucket, ns.Sequence = true, e.bucket.Sequence()
		return c.snapshots(ns, e.bucket)
	case e.at == bucketName:
		ns.Leases = append(ns.Leases, Lease{ID: object[1], Snapshots: keys(e.bucket)})
	case e.at == wholeValue && object[0] == keyContainers:
		ns.Containers = append(ns.Containers, Container{ID: object[1], SnapshotKey: string(b.Get([]byte(keySnapshotKey)))})
	case e.at == wholeValue:
		ns.Default = true
	case e.at == partOfALabel:
		ns.Labels = append(ns.Labels, Label{
			Object: strings.Join(object[:len(object)-1], "/"), Key: string(e.key), Value: string(e.value),
		})
	}
	return nil
}

// snapshots reads the records of the snapshots in a namespace. walk has checked the kinds of the
// entries.
func (c *collector) snapshots(ns *Namespace, b *bolt.Bucket) error {
	return b.ForEach(func(key, value []byte) error {
		record := b.Bucket(key)
		if record == nil {
			c.problem(ns, subject(ns, string(key)), "it is not a record, so containerd ignores it")
			return nil
		}
		s := Snapshot{
			Key: string(key), Backend: string(record.Get([]byte(keyName))), Parent: string(record.Get([]byte(keyParent))),
			Children: keys(record.Bucket([]byte(keyChildren))), Labels: labels(record.Bucket([]byte(keyLabels))),
		}
		s.Created = c.time(ns, record, s.Key, keyCreated)
		s.Updated = c.time(ns, record, s.Key, keyUpdated)
		ns.Snapshots = append(ns.Snapshots, s)
		return nil
	})
}

// time reads a time field of a snapshot's record.
func (c *collector) time(ns *Namespace, record *bolt.Bucket, key, field string) time.Time {
	v := record.Get([]byte(field))
	if v == nil {
		return time.Time{}
	}
	var t time.Time
	if err := t.UnmarshalBinary(v); err != nil {
		c.problem(ns, subject(ns, key), "its field "+field+" is not a time: "+err.Error())
		return time.Time{}
	}
	return t.UTC()
}

func (c *collector) problem(ns *Namespace, subject, text string) {
	c.problems[ns.Name] = append(c.problems[ns.Name], Problem{subject, text})
}

// keys returns the keys of a bucket, or nil if b is nil.
func keys(b *bolt.Bucket) []string {
	var all []string
	if b == nil {
		return nil
	}
	c := b.Cursor()
	for k, _ := c.First(); k != nil; k, _ = c.Next() {
		all = append(all, string(k))
	}
	return all
}

// labels returns the entries of a bucket, or nil if b is nil.
func labels(b *bolt.Bucket) map[string]string {
	if b == nil {
		return nil
	}
	all := make(map[string]string)
	c := b.Cursor()
	for k, v := c.First(); k != nil; k, v = c.Next() {
		all[string(k)] = string(v)
	}
	return all
}
