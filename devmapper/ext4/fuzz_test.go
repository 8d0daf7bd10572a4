package ext4_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/ext4"
)

// editBytes is the size of an edit: an offset in units of 4 bytes, and the 8 new bytes.
const editBytes = 3 + 8

// FuzzRead reads images after random changes. The input is only the changes.
func FuzzRead(f *testing.F) {
	tree := source(f)
	var bases [][]byte
	for _, options := range [][]string{{"-b", "1024", "-g", "4096"}, {"-O", "inline_data", "-I", "512"},
		{"-b", "1024", "-g", "512", "-O", "meta_bg,^resize_inode,^metadata_csum"}} {
		raw, err := os.ReadFile(image(f, 24<<20, tree, append(options, "-J", "size=1", "-b", "1024")...))
		require.NoError(f, err)
		bases = append(bases, raw)
	}
	edit := func(offset uint32, value uint64) []byte {
		at := offset / 4
		return binary.LittleEndian.AppendUint64([]byte{byte(at), byte(at >> 8), byte(at >> 16)}, value)
	}
	for base, raw := range bases {
		f.Add(uint8(base), edit(0, 0))
		for _, offset := range []uint32{0x4, 0x14, 0x18, 0x20, 0x28, 0x58, 0x5C, 0xCC, 0xFC, 0x104, 0x150} {
			f.Add(uint8(base), edit(1024+offset, 0xFFFFFFFFFFFFFFFF))
			f.Add(uint8(base), edit(1024+offset, 1))
		}
		f.Add(uint8(base), edit(2048, 5)) // the first descriptor
		for at := 0; at+2 < len(raw); at += 4 {
			if binary.LittleEndian.Uint16(raw[at:]) == 0xF30A && raw[at+6] > 0 { // an internal node
				f.Add(uint8(base), edit(uint32(at), 0x00010154_0154F30A))
				f.Add(uint8(base), edit(uint32(at+16), uint64(at/1024)))
			}
		}
	}
	f.Fuzz(func(t *testing.T, base uint8, edits []byte) {
		raw := bases[int(base)%len(bases)]
		for ; len(edits) >= editBytes; edits = edits[editBytes:] {
			at := 4 * (int(edits[0]) | int(edits[1])<<8 | int(edits[2])<<16) % (len(raw) - 8)
			before := [8]byte(raw[at:])
			copy(raw[at:], edits[3:editBytes])
			defer func() { copy(raw[at:], before[:]) }()
		}
		requireBounded(t, raw)
	})
}

// requireBounded reads the whole file system. An error must be one of a damaged file system.
func requireBounded(t *testing.T, raw []byte) {
	t.Helper()
	known := func(err error) {
		if err != nil && !errors.Is(err, ext4.ErrDamaged) && !errors.Is(err, ext4.ErrNotExt4) &&
			!errors.Is(err, ext4.ErrUnclean) && !errors.Is(err, errors.ErrUnsupported) {
			require.NoError(t, err)
		}
	}
	f, err := ext4.Open(bytes.NewReader(raw), uint64(len(raw)))
	known(err)
	if err != nil {
		return
	}
	for _, s := range f.Structures() {
		require.LessOrEqual(t, s.End(), f.Blocks())
	}
	nodes := uint64(0)
	within := func(e ext4.Extent) error {
		if e.End() > f.Blocks() || e.End() < e.Start {
			t.Fatalf("extent of %d blocks at %d", e.Length, e.Start)
		}
		if e.Node {
			nodes++
		}
		return nil
	}
	known(f.ReservedBlocks(within))
	for block := range f.Blocks() {
		f.InodesIn(block)
		_, err := f.Used(block)
		known(err)
	}
	known(f.Records(func(_ uint32, r ext4.Record) error {
		known(f.Extents(r, within))
		_, err := f.Parent(r)
		known(err)
		return nil
	}))
	require.LessOrEqual(t, nodes, f.Blocks()+8)
}
