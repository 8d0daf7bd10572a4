package metadata

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	bolt "go.etcd.io/bbolt"
)

// schemaVersion counts incompatible changes of the format. Changes that older versions can ignore
// do not count. A store of an older version gets this one with its first change (upgrade).
//
// Versions 2 to 4: records of these versions. Version 5: key spaces. A store has it from its first key
// space until the last is dropped, so that older versions can use the others.
const (
	schemaVersion = 5
	// schemaRecords is the version that every change gives to a store of a lower one.
	schemaRecords = 4
)

// formatName distinguishes our files from other files with a bucket v1 (containerd has several).
const formatName = "thinsnap"

var (
	keyFormat = []byte("format")
	keySchema = []byte("schema")
)

// create creates an empty store, unless the file exists. It creates a temporary file and links it
// to path: an incomplete store never has that name, and an existing one is not replaced.
func create(path string) (err error) {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+newSuffix+"*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	if err := f.Close(); err != nil {
		return err
	}
	if err := initialise(f.Name()); err != nil {
		return err
	}
	// gofail: var beforeStoreLink struct{}
	if err := os.Link(f.Name(), path); err != nil {
		if _, serr := os.Stat(path); serr != nil {
			return err
		}
	}
	// gofail: var afterStoreLink struct{}
	return nil
}

// syncDirectory makes the file's name durable. Every start calls it: the process that created the
// file may have been killed before it did.
func syncDirectory(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

const newSuffix = ".new-"

// removeLeftovers removes temporary files that a crash within create left. If another process runs
// create now, its file disappears, but it finds that path exists.
func removeLeftovers(path string) {
	dir, name := filepath.Split(path)
	all, err := os.ReadDir(filepath.Clean(dir))
	if err != nil {
		return
	}
	for _, e := range all {
		if strings.HasPrefix(e.Name(), name+newSuffix) {
			_ = os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}

func initialise(path string) error {
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: defaultLockTimeout})
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bolt.Tx) error {
		root, err := tx.CreateBucket(bucketRoot)
		if err != nil {
			return err
		}
		var b buckets
		for _, n := range b.all() {
			if *n.bucket, err = root.CreateBucket([]byte(n.name)); err != nil {
				return err
			}
		}
		if err := b.meta.Put(keyFormat, []byte(formatName)); err != nil {
			return err
		}
		return b.meta.Put(keySchema, binary.AppendUvarint(nil, schemaRecords))
	})
	return errors.Join(err, db.Close())
}

// inspect checks that the file is complete and ours, and returns the number of its last
// transaction.
func (s *Store) inspect(file *os.File) (int, error) {
	info, err := file.Stat()
	if err != nil {
		return 0, err
	}
	id := 0
	err = s.db.View(func(tx *bolt.Tx) error {
		id = tx.ID()
		if info.Size() < tx.Size() {
			return fmt.Errorf("%w: it has %d bytes of %d", ErrCorrupt, info.Size(), tx.Size())
		}
		root := tx.Bucket(bucketRoot)
		if root == nil {
			return fmt.Errorf("%w: it has no bucket %q", ErrCorrupt, bucketRoot)
		}
		meta := root.Bucket([]byte("meta"))
		if meta == nil || string(meta.Get(keyFormat)) != formatName {
			return fmt.Errorf("%w: it is a bbolt file of another program", ErrCorrupt)
		}
		version, err := schemaOf(meta)
		if err != nil {
			return err
		}
		if version > schemaVersion {
			return fmt.Errorf("%w: it has schema version %d, but this version knows only those up to %d",
				ErrSchema, version, schemaVersion)
		}
		_, err = openBuckets(tx)
		return err
	})
	return id, err
}

// schemaOf returns the schema version of the store with this bucket.
func schemaOf(meta *bolt.Bucket) (uint64, error) {
	version, n := binary.Uvarint(meta.Get(keySchema))
	if n <= 0 || version == 0 {
		return 0, fmt.Errorf("%w: it has no schema version", ErrCorrupt)
	}
	return version, nil
}

// upgrade raises the schema version of an older store. It is part of each transaction that changes
// the store, because the transaction may write records that an older version cannot read. A start
// that changes nothing leaves the store to the older version.
func (t *Tx) upgrade() error {
	return t.requireSchema(schemaRecords)
}
