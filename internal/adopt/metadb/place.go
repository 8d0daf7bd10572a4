package metadb

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
)

const (
	schema     = "v1" // core/metadata/db.go, schemaVersion
	minVersion = 3    // since containerd 1.3
	maxVersion = 4    // since containerd 2.0

	// maxLabel limits the bytes of a label's key and value (pkg/labels/validate.go). containerd
	// checks it when it writes a label, and it rewrites all labels of a record with each change.
	maxLabel = 4096

	keyVersion      = "version"
	keyLabels       = "labels"
	keyImages       = "images"
	keyContainers   = "containers"
	keySnapshots    = "snapshots"
	keyContent      = "content"
	keyBlob         = "blob"
	keyLeases       = "leases"
	keySandboxes    = "sandboxes"
	keySnapshotter  = "snapshotter"
	keySnapshotKey  = "snapshotKey"
	keyName         = "name"
	keyParent       = "parent"
	keyChildren     = "children"
	keyCreated      = "createdat"
	keyUpdated      = "updatedat"
	labelDefault    = "containerd.io/defaults/snapshotter" // defaults/defaults.go, DefaultSnapshotterNSLabel
	labelRef        = "containerd.io/gc.ref.snapshot."     // core/metadata/gc.go, labelGCSnapRef
	labelBackRef    = "containerd.io/gc.bref.snapshot."    // labelGCSnapBackRef
	labelCondition  = "containerd.io/gc.cond.snapshot"     // labelGCSnapConditional, without the dot
	conditionSpaces = "./"                                 // the characters between labelCondition and the name

	// parentSuffix ends the label that keeps the parent of a snapshot that is left out.
	// containerSuffix ends the label that keeps such a snapshot for its container. Restore finds
	// the changes of Rename by them.
	parentSuffix    = "/left-out-parent"
	containerSuffix = "/left-out"
)

// A place is the part of an entry that names a snapshotter.
type place uint8

const (
	nowhere      place = iota
	bucketName         // the entry is a bucket, and its key is the name
	wholeValue         // the entry is a value, and the value is the name
	partOfALabel       // the entry is a label, and its key contains the name
)

// placeOf returns the place of a snapshotter's name in entries of the bucket at path, and the key
// of such entries, or "" for any key.
func placeOf(path []string) (place, string) {
	if len(path) < 3 {
		return nowhere, ""
	}
	if path[0] != schema {
		// Sandboxes of version 3 (core/metadata/migrations.go, migrateSandboxes).
		if len(path) == 4 && path[1] == keySandboxes && path[3] == keyLabels {
			return partOfALabel, ""
		}
		return nowhere, ""
	}
	switch object, rest := path[2], path[3:]; object {
	case keyLabels:
		if len(rest) == 0 {
			return wholeValue, labelDefault
		}
	case keySnapshots:
		switch {
		case len(rest) == 0:
			return bucketName, ""
		case len(rest) == 3 && rest[2] == keyLabels:
			return partOfALabel, ""
		}
	case keyLeases:
		if len(rest) == 2 && rest[1] == keySnapshots {
			return bucketName, ""
		}
	case keyContainers:
		switch {
		case len(rest) == 1:
			return wholeValue, keySnapshotter
		case len(rest) == 2 && rest[1] == keyLabels:
			return partOfALabel, ""
		}
	case keyImages, keySandboxes:
		if len(rest) == 2 && rest[1] == keyLabels {
			return partOfALabel, ""
		}
	case keyContent:
		if len(rest) == 3 && rest[0] == keyBlob && rest[2] == keyLabels {
			return partOfALabel, ""
		}
	}
	return nowhere, ""
}

// checkEntry fails if an entry of the bucket at path does not fit the layout of placeOf, because an
// unknown bucket might also name a snapshotter.
func checkEntry(path []string, key string, isBucket bool) error {
	unknown := func() error {
		return fmt.Errorf("%s is not known to this version: use a newer thinsnap: %w", show(path, key),
			errdefs.ErrNotImplemented)
	}
	is := func(bucket bool) error {
		if isBucket != bucket {
			return fmt.Errorf("%s is of the wrong kind: %w", show(path, key), errDamaged)
		}
		return nil
	}
	inSchema := len(path) > 0 && path[0] == schema
	switch {
	case len(path) == 0: // a schema, or a namespace with sandboxes
		return is(true)
	case len(path) == 1 && !inSchema:
		if key != keySandboxes {
			return unknown()
		}
		return is(true)
	case len(path) == 1:
		return is(key != keyVersion)
	case len(path) == 2 && inSchema:
		known := []string{keyLabels, keyImages, keyContainers, keySnapshots, keyContent, keyLeases, keySandboxes}
		if !slices.Contains(known, key) {
			return unknown()
		}
		return is(true)
	case len(path) == 3 && inSchema && path[2] != keyLabels:
		return is(true) // each object is a bucket
	}
	switch at, only := placeOf(path); {
	case at == bucketName:
		return is(true)
	case at == partOfALabel, at == wholeValue && only == labelDefault:
		return is(false)
	case at == wholeValue && key == only:
		return is(false)
	}
	// Buckets above a place.
	if at, only := placeOf(append(slices.Clone(path), key)); at != nowhere && only == "" {
		return is(true)
	}
	switch {
	case snapshotRecord(path) && (key == keyName || key == keyParent):
		return is(false)
	case snapshotRecord(path) && key == keyChildren:
		return is(true)
	case keysOnly(path):
		return is(false)
	}
	return nil
}

// keysOnly returns true for the path of a bucket with a lease's snapshots or a snapshot's children.
func keysOnly(path []string) bool {
	return len(path) == 6 && path[0] == schema && (path[2] == keyLeases && path[4] == keySnapshots ||
		path[2] == keySnapshots && path[5] == keyChildren)
}

// snapshotRecord returns true for the path of a snapshot's bucket.
func snapshotRecord(path []string) bool {
	return len(path) == 5 && path[0] == schema && path[2] == keySnapshots
}

// splitLabel returns the snapshotter's name in the key of a label, and the parts before and after
// it, like containerd's garbage collector (core/metadata/gc.go, startGCContext). A dot does not end
// the name.
func splitLabel(key []byte) (before, name, after []byte, ok bool) {
	var at int
	switch {
	case bytes.HasPrefix(key, []byte(labelRef)):
		at = len(labelRef)
	case bytes.HasPrefix(key, []byte(labelBackRef)):
		at = len(labelBackRef)
	case bytes.HasPrefix(key, []byte(labelCondition)):
		at = len(key) - len(bytes.TrimLeft(key[len(labelCondition):], conditionSpaces))
	default:
		return nil, nil, nil, false
	}
	before, name = key[:at], key[at:]
	if end := bytes.IndexByte(name, '/'); end >= 0 {
		name, after = name[:end], name[end:]
	}
	return before, name, after, true
}

// nameIn returns the snapshotter's name in an entry of the bucket at path.
func nameIn(path []string, key, value []byte, isBucket bool) (at place, name []byte, ok bool) {
	at, only := placeOf(path)
	if only != "" && string(key) != only {
		return nowhere, nil, false
	}
	switch at {
	case bucketName:
		return at, key, isBucket
	case wholeValue:
		return at, value, !isBucket
	case partOfALabel:
		_, name, _, ok = splitLabel(key)
		return at, name, ok && !isBucket
	case nowhere:
	}
	return nowhere, nil, false
}

// namespaceOf returns the namespace in a path.
func namespaceOf(path []string) string {
	if path[0] == schema {
		return path[1]
	}
	return path[0]
}

// referent returns the key of the snapshot to which a label with a snapshotter's name refers.
func referent(label, value []byte) string {
	if !bytes.HasPrefix(label, []byte(labelCondition)) {
		return string(value)
	}
	_, key, _ := bytes.Cut(value, []byte{'|'}) // core/metadata/gc.go: CONDITION,...|KEY
	return string(key)
}

// checkName fails for a name in references to which containerd would lose a part: its garbage
// collector ends the name at a slash, and removes dots before it.
func checkName(snapshotter string) error {
	wrong := ""
	switch {
	case snapshotter == "":
		wrong = "it is empty"
	case len(snapshotter) > 255:
		wrong = "it is longer than 255 bytes"
	case snapshotter[0] == '.':
		wrong = "it begins with a dot"
	}
	for _, c := range []byte(snapshotter) {
		if c <= ' ' || c == '/' || c > '~' {
			wrong = "a name has printable ASCII without blanks and slashes"
		}
	}
	if wrong != "" {
		return fmt.Errorf("%q is not a valid name of a snapshotter: %s: %w", snapshotter, wrong, errdefs.ErrInvalidArgument)
	}
	return nil
}
