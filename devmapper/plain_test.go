package devmapper

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// The kernel's side of the ABI, written as plainly as possible and without the codec: field by
// field into a buffer.

func plain(fields ...any) []byte {
	var b bytes.Buffer
	for _, f := range fields {
		if s, ok := f.(string); ok {
			b.WriteString(s)
			b.WriteByte(0)
			continue
		}
		if err := binary.Write(&b, binary.NativeEndian, f); err != nil {
			panic(err)
		}
	}
	return b.Bytes()
}

func fixed(s string, n int) []byte { return append([]byte(s), make([]byte, n-len(s))...) }

func padded(b []byte) []byte { return append(b, make([]byte, -len(b)&7)...) }

func plainHeader(dataSize, targetCount, flags, eventNr uint32, name, uuid string) []byte {
	return plain(uint32(4), uint32(0), uint32(0), dataSize, uint32(312), targetCount, int32(0), flags, eventNr,
		uint32(0), uint64(0), fixed(name, 128), fixed(uuid, 129), fixed("", 7))
}

// plainSpecs returns a table; each next counts from its own spec, or from the first.
func plainSpecs(targets []Target, fromFirst bool) []byte {
	var out []byte
	for _, t := range targets {
		size := uint32(len(padded(plain(fixed("", 40), t.Params))))
		next := size
		if fromFirst {
			next += uint32(len(out))
		}
		out = append(out, padded(plain(t.Start, t.Length, int32(0), next, fixed(t.Type, 16), t.Params))...)
	}
	return out
}

// plainNames returns the list of a kernel since 5.13, with event numbers and uuids.
func plainNames(devices []Device) []byte {
	var out []byte
	for i, d := range devices {
		record := func(next uint32) []byte {
			dev := unix.Mkdev(d.Major, d.Minor)
			flags := uint32(unix.DM_NAME_LIST_FLAG_DOESNT_HAVE_UUID)
			if d.UUID != "" {
				flags = unix.DM_NAME_LIST_FLAG_HAS_UUID
			}
			r := padded(plain(dev, next, d.Name))
			r = padded(append(r, plain(d.EventNr, flags)...))
			if d.UUID != "" {
				r = padded(append(r, plain(d.UUID)...))
			}
			return r
		}
		next := uint32(len(record(0)))
		if i == len(devices)-1 {
			next = 0
		}
		out = append(out, record(next)...)
	}
	return out
}
