package metadata

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
)

// A key space has the keys of one client. The one with the empty name is the default client's, whose keys
// are stored as they are. Another's keys are stored after a mark and the name of the key space. The mark
// is no UTF-8, and gRPC takes nothing else: so no client can send such a key.
//
// All keys of a key space are one range, for no name has a slash; those of the default one are all below
// the mark.
const (
	keySpaceMark = "\xff"
	keySpaceEnd  = "/"
)

// MaxKeySpace is the longest name of a key space, in bytes.
const MaxKeySpace = 32

var keySpaceName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)

// CheckKeySpace returns InvalidArgument if a name cannot be that of a client's key space: 1 to MaxKeySpace
// lower-case letters, digits and hyphens, with no hyphen at the ends. The empty name is valid.
func CheckKeySpace(name string) error {
	if name == "" || len(name) <= MaxKeySpace && keySpaceName.MatchString(name) {
		return nil
	}
	return invalid("name of a client %q", name)
}

// KeyPrefix begins the stored keys of a key space, and those of no other but the default one, for which it
// is empty. The name must be valid.
func KeyPrefix(space string) string {
	if space == "" {
		return ""
	}
	return keySpaceMark + space + keySpaceEnd
}

// JoinKey returns the stored key of a client's key. It is InvalidArgument if there can be none: the key is
// empty, too long, or begins as the keys of other key spaces do.
func JoinKey(space, key string) (string, error) {
	if strings.HasPrefix(key, keySpaceMark) {
		return "", invalid("snapshot key %q is not UTF-8", key)
	}
	if err := CheckKeySpace(space); err != nil {
		return "", err
	}
	prefix := KeyPrefix(space)
	if err := checkKeyLength(key, MaxKeyLength-len(prefix)); err != nil {
		return "", err
	}
	return prefix + key, nil
}

// SplitKey returns the key space of a stored key, and the client's key.
func SplitKey(stored string) (space, key string) {
	marked, isMarked := strings.CutPrefix(stored, keySpaceMark)
	if !isMarked {
		return "", stored
	}
	space, key, _ = strings.Cut(marked, keySpaceEnd)
	return space, key
}

func ownKey(stored string) string {
	_, key := SplitKey(stored)
	return key
}

// inSpace returns the keys that begin a page of a key space, and end it: the second is not in it.
func inSpace(space string) (after, below string) {
	if space == "" {
		return "", keySpaceMark
	}
	prefix := KeyPrefix(space)
	last := len(prefix) - 1
	return prefix, prefix[:last] + string(prefix[last]+1)
}

// operatorMark begins the operator's keys of snapshots of other clients than the default one.
const operatorMark = "@"

// ShowKey returns a stored key as the operator sees it: "@SPACE/KEY", and the key alone in the default key
// space ("@/KEY" if it begins with @).
func ShowKey(stored string) string {
	space, key := SplitKey(stored)
	if space == "" && !strings.HasPrefix(key, operatorMark) {
		return key
	}
	return operatorMark + space + keySpaceEnd + key
}

// ReadKey returns the stored key for what ShowKey returns. It is NotFound for any other text.
func ReadKey(shown string) (stored string, err error) {
	space, key := "", shown
	if marked, isMarked := strings.CutPrefix(shown, operatorMark); isMarked {
		if of, rest, found := strings.Cut(marked, keySpaceEnd); found {
			space, key = of, rest
		}
	}
	if stored, err = JoinKey(space, key); err != nil {
		return "", fmt.Errorf("snapshot %q: %w", shown, errdefs.ErrNotFound)
	}
	return stored, nil
}

// quotedMark is how the text of an error, which quotes keys, has the beginning of those of a key space.
var quotedMark = regexp.MustCompile(`\\xff([a-z0-9-]{1,32})/`)

// ShowText returns a text with quoted keys in which those of other key spaces than the default one are as
// ShowKey returns them.
func ShowText(text string) string {
	return quotedMark.ReplaceAllString(text, operatorMark+"$1"+keySpaceEnd)
}

// OwnText returns a text for the client of a key space: its keys in it are as it knows them, and those of
// others as ShowText returns them.
func OwnText(space, text string) string {
	if space == "" {
		return ShowText(text)
	}
	return ShowText(quotedMark.ReplaceAllStringFunc(text, func(found string) string {
		if found == `\xff`+space+keySpaceEnd {
			return ""
		}
		return found
	}))
}

// keyClientOf is the key of the client's record of a key space.
func keyClientOf(space string) []byte { return ofSpace(keyClient, space) }

func ofSpace(key []byte, space string) []byte {
	if space == "" {
		return key
	}
	return append(append(bytes.Clone(key), ' '), space...)
}

// KeySpaces returns the names of the key spaces that have a client's record, in their order, without the
// default one.
func (t *Tx) KeySpaces() []string {
	var all []string
	prefix := append(bytes.Clone(keyClient), ' ')
	c := t.buckets.meta.Cursor()
	for k, _ := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, _ = c.Next() {
		all = append(all, string(k[len(prefix):]))
	}
	return all
}

// requireKeySpace is FailedPrecondition if a key is of a key space that has no client's record, which an
// older version would not know either.
func (t *Tx) requireKeySpace(stored string) error {
	space, _ := SplitKey(stored)
	if space != "" && t.buckets.meta.Get(keyClientOf(space)) == nil {
		return fmt.Errorf("snapshot %q: no client %q is recorded: %w", stored, space, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// DropKeySpace deletes the records of the client of a key space other than the default one. It is NotFound if
// there is none, and FailedPrecondition while it has snapshots. Older versions can use the store again after the last
// one, when the trash has nothing of it any more.
func (t *Tx) DropKeySpace(space string) error {
	if err := CheckKeySpace(space); err != nil || space == "" {
		return invalid("name of a client %q", space)
	}
	if t.buckets.meta.Get(keyClientOf(space)) == nil {
		return fmt.Errorf("client %q of the metadata store: %w", space, errdefs.ErrNotFound)
	}
	prefix := []byte(KeyPrefix(space))
	if k, _ := t.buckets.snapshots.Cursor().Seek(prefix); bytes.HasPrefix(k, prefix) {
		return fmt.Errorf("client %q has snapshots: %w", space, errdefs.ErrFailedPrecondition)
	}
	for _, k := range [][]byte{keyCounters, keyTold} {
		if err := t.delete(t.buckets.meta, ofSpace(k, space)); err != nil {
			return err
		}
	}
	if err := t.delete(t.buckets.meta, keyClientOf(space)); err != nil {
		return err
	}
	return t.lowerSchema()
}

// lowerSchema gives the store the version that it had before its first key space, if no record is left that came with
// key spaces: the others are the same in both versions.
func (t *Tx) lowerSchema() error {
	stored, err := schemaOf(t.buckets.meta)
	if err != nil || stored != schemaVersion || len(t.KeySpaces()) > 0 {
		return err
	}
	if k, _ := t.buckets.snapshots.Cursor().Seek([]byte(keySpaceMark)); k != nil {
		return nil
	}
	c := t.buckets.trash.Cursor()
	for k, v := c.First(); k != nil; k, v = c.Next() {
		r, err := decodeTrash(k, v)
		if err != nil || strings.HasPrefix(r.Key, keySpaceMark) {
			return nil //nolint:nilerr // a record that does not decode may be of a key space, too
		}
	}
	return t.setSchema(schemaRecords)
}

// requireSchema raises the schema version of the store, if it is lower.
func (t *Tx) requireSchema(version uint64) error {
	stored, err := schemaOf(t.buckets.meta)
	if err != nil || stored >= version {
		return err
	}
	return t.setSchema(version)
}

func (t *Tx) setSchema(version uint64) error {
	return t.put(t.buckets.meta, keySchema, binary.AppendUvarint(nil, version))
}
