package metadata

import (
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"time"
)

// recordVersion is the first byte of every new record. Decoders read all versions up to it. Fields
// that an older version lacks stay zero.
const recordVersion = 4

var errRecord = errors.New("record does not decode")

// encoder appends fields to a record: integers as varints, strings after their length.
type encoder struct{ b []byte }

func newEncoder(size int) *encoder {
	return &encoder{b: append(make([]byte, 0, size), recordVersion)}
}

func (e *encoder) uvarint(v uint64) { e.b = binary.AppendUvarint(e.b, v) }
func (e *encoder) varint(v int64)   { e.b = binary.AppendVarint(e.b, v) }

func (e *encoder) string(s string) {
	e.uvarint(uint64(len(s)))
	e.b = append(e.b, s...)
}

func (e *encoder) bool(v bool) {
	var n uint64
	if v {
		n = 1
	}
	e.uvarint(n)
}

// time keeps nanoseconds and the whole range of time.Time, but no zone and no monotonic clock.
func (e *encoder) time(t time.Time) {
	e.varint(t.Unix())
	e.uvarint(uint64(t.Nanosecond()))
}

func (e *encoder) strings(l []string) {
	e.uvarint(uint64(len(l)))
	for _, s := range l {
		e.string(s)
	}
}

// labels sorts the labels, so that equal records have equal bytes.
func (e *encoder) labels(m map[string]string) {
	e.uvarint(uint64(len(m)))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		e.string(k)
		e.string(m[k])
	}
}

// decoder reads the fields of a record. After a missing one all are zero, and finish fails.
type decoder struct {
	version byte // of the record; a field of version 2 is in records from 2 on
	b       []byte
	failed  bool
	// noLabels skips the labels.
	noLabels bool
}

func newDecoder(b []byte) *decoder {
	if len(b) == 0 || b[0] == 0 || b[0] > recordVersion {
		return &decoder{failed: true}
	}
	return &decoder{version: b[0], b: b[1:]}
}

func (d *decoder) fail() { d.b, d.failed = nil, true }

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

// max reads a uvarint, and fails if it exceeds limit.
func (d *decoder) max(limit uint64) uint64 {
	v := d.uvarint()
	if v > limit {
		d.fail()
		return 0
	}
	return v
}

func (d *decoder) string() string { return string(d.bytes()) }

// bytes returns the bytes of a string, which the caller must not change.
func (d *decoder) bytes() []byte {
	n := d.max(uint64(len(d.b)))
	// The limit counted the length's own bytes too.
	if n > uint64(len(d.b)) {
		d.fail()
		return nil
	}
	s := d.b[:n]
	d.b = d.b[n:]
	return s
}

func (d *decoder) bool() bool { return d.max(1) == 1 }

func (d *decoder) time() time.Time {
	sec, nsec := d.varint(), d.max(999_999_999)
	if d.failed {
		return time.Time{}
	}
	return time.Unix(sec, int64(nsec)).UTC()
}

func (d *decoder) strings() []string {
	// Each string takes at least a byte, so a wrong length allocates no more than the record's
	// size.
	n := d.max(uint64(len(d.b)))
	var l []string
	for range n {
		if d.failed {
			return nil
		}
		l = append(l, d.string())
	}
	return l
}

func (d *decoder) labels() map[string]string {
	n := d.max(uint64(len(d.b)))
	if n == 0 {
		return nil
	}
	if d.noLabels {
		for range n {
			d.bytes()
			d.bytes()
		}
		return nil
	}
	m := make(map[string]string)
	last := ""
	for i := range n {
		k, v := d.string(), d.string()
		if d.failed || (i > 0 && k <= last) {
			d.fail()
			return nil
		}
		m[k], last = v, k
	}
	return m
}

// more reports whether fields are left.
func (d *decoder) more() bool { return len(d.b) > 0 }

// finish fails unless exactly the fields of the record were read.
func (d *decoder) finish() error {
	if d.failed || len(d.b) > 0 {
		return errRecord
	}
	return nil
}
