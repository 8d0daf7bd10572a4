package metadata

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
)

// A key space has the keys of the clients of one socket. The default one has the empty name, and stores keys as they
// are. A further one stores a key after the mark, its own name and a slash. No client can send such a key: gRPC carries
// only UTF-8, which has no such byte.
//
// No name has a slash, so all keys of a key space are one range. Those of the default one sort before the mark.
const (
	keySpaceMark = "\xff"
	keySpaceEnd  = "/"
)

// MaxKeySpace is the longest name of a key space, in bytes.
const MaxKeySpace = 32

var keySpaceName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)

// CheckKeySpace returns InvalidArgument for an invalid name of a key space. A name has 1 to MaxKeySpace lower-case
// letters, digits and hyphens, with no hyphen at either end. The empty name is valid.
func CheckKeySpace(name string) error {
	if name == "" || len(name) <= MaxKeySpace && keySpaceName.MatchString(name) {
		return nil
	}
	return invalid("invalid client name %q", name)
}

// KeyPrefix returns the prefix of the stored keys of a key space, empty for the default one. The name must be valid.
func KeyPrefix(space string) string {
	if space == "" {
		return ""
	}
	return keySpaceMark + space + keySpaceEnd
}

// JoinKey returns the stored key of a client's key. It returns InvalidArgument if the key is empty, too long, or begins
// with the mark.
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

// SplitKey returns the key space and the client's key of a stored key.
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

// keyRange returns the bounds of the stored keys of a key space: begin <= key < below.
func keyRange(space string) (begin, below string) {
	if space == "" {
		return "", keySpaceMark
	}
	prefix := KeyPrefix(space)
	last := len(prefix) - 1
	return prefix, prefix[:last] + string(prefix[last]+1)
}

// operatorMark begins keys of further key spaces in texts for the operator.
const operatorMark = "@"

// ShowKey returns a stored key as the operator sees it: "@SPACE/KEY". In the default key space that is the key alone,
// or "@/KEY" if it begins with @.
func ShowKey(stored string) string {
	space, key := SplitKey(stored)
	if space == "" && !strings.HasPrefix(key, operatorMark) {
		return key
	}
	return operatorMark + space + keySpaceEnd + key
}

// ReadKey reverses ShowKey. A text that begins with @ and has no slash is a key of the default key space. A text that
// cannot be a key is NotFound.
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

// quotedMark matches the quoted prefix of a stored key in the text of an error.
var quotedMark = regexp.MustCompile(`\\xff([a-z0-9-]{1,32})/`)

// ShowText returns a text for the operator: quoted keys in it are shown as ShowKey shows them.
func ShowText(text string) string {
	return quotedMark.ReplaceAllString(text, operatorMark+"$1"+keySpaceEnd)
}

// OwnText returns a text for the client of a key space: quoted keys of its own lose the prefix, others are shown as
// ShowText shows them.
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

func keyClientOf(space string) []byte { return spaceKey(keyClient, space) }

func spaceKey(key []byte, space string) []byte {
	if space == "" {
		return key
	}
	return append(append(bytes.Clone(key), ' '), space...)
}

// KeySpaces returns the names of the further key spaces that have a client's record, sorted.
func (t *Tx) KeySpaces() []string {
	var all []string
	prefix := append(bytes.Clone(keyClient), ' ')
	c := t.buckets.meta.Cursor()
	for k, _ := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, _ = c.Next() {
		all = append(all, string(k[len(prefix):]))
	}
	return all
}

// requireKeySpace returns FailedPrecondition if the further key space of a key has no client's record. Before SetClient
// the format is too low, and older thinsnaps would use the store.
func (t *Tx) requireKeySpace(stored string) error {
	space, _ := SplitKey(stored)
	if space != "" && t.buckets.meta.Get(keyClientOf(space)) == nil {
		return fmt.Errorf("snapshot %q: no client %q is recorded: %w", stored, space, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// DropKeySpace deletes the client's records of a further key space. It returns NotFound if there are none, and
// FailedPrecondition while the key space has snapshots.
//
// After the last further one is dropped, older thinsnaps can use the store again as soon as the trash has no volumes of
// such key spaces.
func (t *Tx) DropKeySpace(space string) error {
	if err := CheckKeySpace(space); err != nil || space == "" {
		return invalid("invalid client name %q", space)
	}
	if t.buckets.meta.Get(keyClientOf(space)) == nil {
		return fmt.Errorf("client %q of the metadata store: %w", space, errdefs.ErrNotFound)
	}
	prefix := []byte(KeyPrefix(space))
	if k, _ := t.buckets.snapshots.Cursor().Seek(prefix); bytes.HasPrefix(k, prefix) {
		return fmt.Errorf("client %q has snapshots: %w", space, errdefs.ErrFailedPrecondition)
	}
	for _, k := range [][]byte{keyCounters, keyTold} {
		if err := t.delete(t.buckets.meta, spaceKey(k, space)); err != nil {
			return err
		}
	}
	if err := t.delete(t.buckets.meta, keyClientOf(space)); err != nil {
		return err
	}
	return t.lowerSchema()
}

// lowerSchema lowers the format once the store has no records of further key spaces. All other records are the
// same in both formats.
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

// requireSchema raises the format of the store to at least version.
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
