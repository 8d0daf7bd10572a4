package repair_test

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/pool/repair"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

const (
	volumes, blocksOfEach = 40, 400
	blockBytes            = 64 << 10
	transaction           = 9
	metadataBytes         = 4 << 20
	// The checksums of the kinds of block are combined with these (SUPERBLOCK_CSUM_XOR,
	// BTREE_CSUM_XOR, BITMAP_CSUM_XOR).
	superblockSalt, nodeSalt, bitmapSalt = 160774, 121107, 240779
)

type image []byte

// newImage creates the metadata of a pool with thin_restore, with volumes that share nothing.
func newImage(t *testing.T) image {
	t.Helper()
	var dump strings.Builder
	fmt.Fprintf(&dump, `<superblock uuid="" time="5" transaction="%d" flags="0" version="2" data_block_size="%d" nr_data_blocks="65536">`,
		transaction, blockBytes/512)
	for id := 1; id <= volumes; id++ {
		fmt.Fprintf(&dump, `<device dev_id="%d" mapped_blocks="%d" transaction="1" creation_time="1" snap_time="4">`, id, blocksOfEach)
		for block := range blocksOfEach {
			// With gaps, each mapping is an entry of its own.
			fmt.Fprintf(&dump, `<single_mapping origin_block="%d" data_block="%d" time="3"/>`, 3*block, (id-1)*blocksOfEach+block)
		}
		dump.WriteString("</device>")
	}
	dump.WriteString("</superblock>")
	source, file := filepath.Join(t.TempDir(), "dump.xml"), filepath.Join(t.TempDir(), "metadata")
	require.NoError(t, os.WriteFile(source, []byte(dump.String()), 0o600))
	require.NoError(t, os.WriteFile(file, make([]byte, metadataBytes), 0o600))
	_, err := exec.LookPath("thin_restore")
	dmtest.RequireInstalled(t, err)
	out, err := exec.Command("thin_restore", "-i", source, "-o", file).CombinedOutput()
	require.NoError(t, err, "%s", out)
	made, err := os.ReadFile(file)
	require.NoError(t, err)
	return made
}

func (m image) block(number uint64) []byte { return m[number*4096:][:4096:4096] }

// seal corrects a block's checksum.
func (m image) seal(number uint64, salt uint32) {
	b := m.block(number)
	binary.LittleEndian.PutUint32(b, ^crc32.Checksum(b[4:], crc32.MakeTable(crc32.Castagnoli))^salt)
}

// roots returns the root blocks of the tree of the volumes' trees, and of the list of volumes.
func (m image) roots() (trees, list uint64) {
	return binary.LittleEndian.Uint64(m[320:]), binary.LittleEndian.Uint64(m[328:])
}

func (m image) value(node uint64, entry int) uint64 {
	b := m.block(node)
	return binary.LittleEndian.Uint64(b[32+8*binary.LittleEndian.Uint32(b[20:])+8*uint32(entry):])
}

// damages are functions that damage metadata.
var damages = map[string]func(m image){
	"none":                  func(image) {},
	"needs_check":           func(m image) { m[4] |= 1; m.seal(0, superblockSalt) },
	"superblock's checksum": func(m image) { m[100] ^= 0xff },
	"superblock":            func(m image) { clear(m.block(0)) },
	"superblock's time":     func(m image) { m[44] = 1 },
	"superblock's root":     func(m image) { m[320] ^= 0xff },
	"leaf": func(m image) {
		trees, _ := m.roots()
		clear(m.block(m.value(m.value(trees, 4), 1))) // volume 5 has three leaves
	},
	"trees": func(m image) { trees, _ := m.roots(); clear(m.block(trees)) },
	"list":  func(m image) { _, list := m.roots(); clear(m.block(list)) },
	"treeless": func(m image) {
		trees, _ := m.roots()
		binary.LittleEndian.PutUint32(m.block(trees)[16:], volumes-1)
		m.seal(trees, nodeSalt)
	},
	// A reference count of one for a free block, in the counts of data (struct disk_sm_root, struct
	// disk_index_entry, struct disk_bitmap_header of drivers/md/persistent-data).
	"lost block": func(m image) {
		const free = volumes*blocksOfEach + 100
		count := func(b []byte, change int) {
			binary.LittleEndian.PutUint32(b, uint32(int(binary.LittleEndian.Uint32(b))+change))
		}
		index := binary.LittleEndian.Uint64(m[80:])
		node := m.block(index)
		entry := node[32+8*binary.LittleEndian.Uint32(node[20:]):]
		bitmap := binary.LittleEndian.Uint64(entry)
		m.block(bitmap)[16+free/4] |= 2 << (free % 4 * 2)
		m.seal(bitmap, bitmapSalt)
		count(entry[8:], -1)
		m.seal(index, nodeSalt)
		count(m[72:], 1)
		m.seal(0, superblockSalt)
	},
}

// spoilt writes a damaged image to a file.
func spoilt(t *testing.T, m image, damage string) repair.Metadata {
	t.Helper()
	bad := append(image{}, m...)
	damages[damage](bad)
	file := filepath.Join(t.TempDir(), "metadata")
	require.NoError(t, os.WriteFile(file, bad, 0o600))
	return repair.Metadata{File: file, BlockBytes: blockBytes, DataBytes: 4 << 30, TransactionID: transaction, Used: true}
}

func load(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	return b
}
