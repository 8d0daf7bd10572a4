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

// schemaVersion is the newest format of a store. The first change to an older store raises its
// format to schemaRecords (upgrade).
//
// Formats 2 to 4 added fields to records (see recordVersion). Format 5 added further key spaces.
// Only a store with further key spaces has format 5, so that older thinsnaps can use all others.
const (
	schemaVersion = 5
	// schemaRecords is the format of a changed store without further key spaces.
	schemaRecords = 4
)

// formatName distinguishes a store from other files with a bucket v1 (containerd has several).
const formatName = "thinsnap"

var (
	keyFormat = []byte("format")
	keySchema = []byte("schema")
)

// create creates an empty store unless the file exists. It links a temporary file to path, so that
// path never has an incomplete store, and an existing one is not replaced.
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

// syncDirectory makes the file's name durable. Every start calls it, because the process that
// created the file may have been killed before it did.
func syncDirectory(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

const newSuffix = ".new-"

// removeTemporary removes temporary files of a create that crashed. A create that runs in another
// process loses its file, but finds that path exists.
func removeTemporary(path string) {
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

// inspect checks that the file is a complete store of a known format, and returns the id of its
// last transaction.
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
			return fmt.Errorf("%w: it has format %d, but this thinsnap knows only formats up to %d",
				ErrNewer, version, schemaVersion)
		}
		_, err = openBuckets(tx)
		return err
	})
	return id, err
}

func schemaOf(meta *bolt.Bucket) (uint64, error) {
	version, n := binary.Uvarint(meta.Get(keySchema))
	if n <= 0 || version == 0 {
		return 0, fmt.Errorf("%w: it has no format", ErrCorrupt)
	}
	return version, nil
}

// upgrade raises the format of an older store. Each transaction that changes the store
// calls it, because it may write records that an older thinsnap cannot read. A start without changes
// leaves the store usable by the older thinsnap.
func (t *Tx) upgrade() error {
	return t.requireSchema(schemaRecords)
}
