package thinmeta_test

import (
	"encoding/binary"
	"hash/crc32"
)

const (
	superblockSalt = 160774
	nodeSalt       = 121107
	magic          = 27022010
)

// image is metadata that is written block by block, for content that no tool writes.
type image []byte

func (m image) blocks() int { return len(m) / 4096 }

func (m image) block(number int) []byte { return m[number*4096:][:4096:4096] }

// seal writes the number and the checksum of a block.
func (m image) seal(number int) {
	b, salt := m.block(number), uint32(nodeSalt)
	if number == 0 || binary.LittleEndian.Uint64(b[32:]) == magic {
		salt = superblockSalt
	}
	binary.LittleEndian.PutUint64(b[8:], uint64(number))
	binary.LittleEndian.PutUint32(b, ^crc32.Checksum(b[4:], crc32.MakeTable(crc32.Castagnoli))^salt)
}

// pair is a key and its value: a pointer, or a block time.
type pair struct{ key, value uint64 }

// node writes a node of 8-byte values. flags: 1 internal, 2 leaf.
func (m image) node(number int, flags uint32, pairs ...pair) {
	const limit = 252
	m.header(number, flags, len(pairs), limit, 8)
	b := m.block(number)
	for i, p := range pairs {
		binary.LittleEndian.PutUint64(b[32+8*i:], p.key)
		binary.LittleEndian.PutUint64(b[32+8*limit+8*i:], p.value)
	}
	m.seal(number)
}

func (m image) details(number int, ids ...uint64) {
	const limit = 126
	m.header(number, 2, len(ids), limit, 24)
	for i, id := range ids {
		binary.LittleEndian.PutUint64(m.block(number)[32+8*i:], id)
	}
	m.seal(number)
}

func (m image) header(number int, flags uint32, count, limit, valueBytes int) {
	b := m.block(number)
	clear(b)
	binary.LittleEndian.PutUint32(b[4:], flags)
	binary.LittleEndian.PutUint32(b[16:], uint32(count))
	binary.LittleEndian.PutUint32(b[20:], uint32(limit))
	binary.LittleEndian.PutUint32(b[24:], uint32(valueBytes))
}

// set changes a 32-bit field of a block, and seals the block.
func (m image) set(number, offset int, value uint32) {
	binary.LittleEndian.PutUint32(m.block(number)[offset:], value)
	m.seal(number)
}

// newImage has a superblock, and one volume with one mapping. Block 1 is the tree of the volumes'
// details, 2 that of their mappings' roots, and 3 volume 7's mappings.
func newImage(blocks int) image {
	m := make(image, blocks*4096)
	b := m.block(0)
	binary.LittleEndian.PutUint64(b[32:], magic)
	binary.LittleEndian.PutUint32(b[40:], 2)
	binary.LittleEndian.PutUint64(b[320:], 2)
	binary.LittleEndian.PutUint64(b[328:], 1)
	binary.LittleEndian.PutUint32(b[336:], 128)
	binary.LittleEndian.PutUint32(b[340:], 8)
	m.seal(0)
	m.details(1, 7)
	m.node(2, 2, pair{7, 3})
	m.node(3, 2, pair{5, 99<<24 | 4})
	return m
}
