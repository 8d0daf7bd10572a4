package metadb

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"slices"
)

// checksum is a SHA-256 of an entry or of a bucket.
type checksum [sha256.Size]byte

// digest returns the digest of an entry. It leaves out the snapshotter's name where the entry has
// it.
func (e *entry) digest() checksum {
	key, rest, value := e.key, []byte(nil), e.value
	if e.name != "" {
		switch e.at {
		case bucketName:
			key = nil
		case wholeValue:
			value = nil
		case partOfALabel:
			key, _, rest, _ = splitLabel(e.key)
		case nowhere:
		}
	}
	kind := byte(0)
	if e.bucket != nil {
		kind, value = 1, e.contents[:]
	}
	if e.name != "" {
		kind |= 2
	}
	b := []byte{kind}
	for _, field := range [][]byte{key, rest, value} {
		b = binary.AppendUvarint(b, uint64(len(field)))
		b = append(b, field...)
	}
	return sha256.Sum256(b)
}

// combine returns the digest of a bucket. It does not depend on the order of the entries, which
// changes with the name.
func combine(sequence uint64, sums []checksum) checksum {
	slices.SortFunc(sums, func(a, b checksum) int { return bytes.Compare(a[:], b[:]) })
	h := sha256.New()
	h.Write(binary.BigEndian.AppendUint64(nil, sequence))
	for _, sum := range sums {
		h.Write(sum[:])
	}
	return checksum(h.Sum(nil))
}
