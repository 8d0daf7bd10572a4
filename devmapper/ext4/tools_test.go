package ext4_test

import (
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/ext4"
)

const imageBytes = 64 << 20

// TestGroupsAsDumpe2fs compares the file system's own blocks, and the free ones, with dumpe2fs,
// also for file systems that have grown.
func TestGroupsAsDumpe2fs(t *testing.T) {
	tree := source(t)
	for _, name := range slices.Sorted(maps.Keys(features())) {
		t.Run(name, func(t *testing.T) {
			path := image(t, imageBytes, tree, features()[name]...)
			requireGroups(t, path)
			require.NoError(t, os.Truncate(path, 160<<20))
			tool(t, "", "resize2fs", path)
			requireGroups(t, path)
		})
	}
}

func requireGroups(t *testing.T, path string) {
	t.Helper()
	f, err := open(t, path)
	require.NoError(t, err)
	theirs := parseDump(t, tool(t, "", "dumpe2fs", path))
	theirs.structures = append(theirs.structures, ext4.Span{Start: 0, Length: theirs.firstBlock})
	structures := f.Structures()
	require.Equal(t, ext4.Merge(theirs.structures), structures)
	for block := theirs.firstBlock; block < f.Blocks(); block++ {
		used, err := f.Used(block)
		free := theirs.freeBlocks[block]
		if !used && !free && theirs.uninitialized(block) && slices.ContainsFunc(structures, func(s ext4.Span) bool {
			return s.Start <= block && block < s.End()
		}) {
			continue // in a group without a bitmap
		}
		if err != nil || used == free {
			t.Fatalf("block %d: used %t, free in dumpe2fs %t, error %v", block, used, free, err)
		}
	}
	for inode := range uint32(f.Inodes()) {
		allocated, err := f.Allocated(inode + 1)
		if free := theirs.freeInodes[inode+1]; err != nil || free == allocated {
			t.Fatalf("inode %d: allocated %t, error %v", inode+1, allocated, err)
		}
	}
}

// dump is the output of dumpe2fs.
type dump struct {
	firstBlock, perGroup   uint64
	structures             []ext4.Span
	freeBlocks, freeInodes []bool              // by number
	uninit                 map[uint64]struct{} // groups without a bitmap of blocks
}

func (d *dump) uninitialized(block uint64) bool {
	_, ok := d.uninit[(block-d.firstBlock)/d.perGroup]
	return ok
}

func parseDump(t *testing.T, text string) *dump {
	t.Helper()
	number := func(s string) uint64 {
		n, err := strconv.ParseUint(s, 10, 64)
		require.NoError(t, err)
		return n
	}
	field := func(name string) uint64 {
		return number(regexp.MustCompile(`(?m)^` + name + `: +(\d+)$`).FindStringSubmatch(text)[1])
	}
	d := &dump{
		firstBlock: field("First block"), perGroup: field("Blocks per group"),
		freeBlocks: make([]bool, field("Block count")+1), freeInodes: make([]bool, field("Inode count")+1),
		uninit: map[uint64]struct{}{},
	}
	structure := regexp.MustCompile(`(?:superblock|descriptors?|blocks|bitmap|table) at (\d+)(?:-(\d+))?`)
	header := regexp.MustCompile(`^Group (\d+): `)
	for line := range strings.Lines(text) {
		if m := header.FindStringSubmatch(line); m != nil && strings.Contains(line, "BLOCK_UNINIT") {
			d.uninit[number(m[1])] = struct{}{}
		}
		for _, m := range structure.FindAllStringSubmatch(line, -1) {
			first, last := number(m[1]), number(m[1])
			if m[2] != "" {
				last = number(m[2])
			}
			d.structures = append(d.structures, ext4.Span{Start: first, Length: last - first + 1})
		}
		for prefix, set := range map[string][]bool{"  Free blocks: ": d.freeBlocks, "  Free inodes: ": d.freeInodes} {
			list, ok := strings.CutPrefix(strings.TrimRight(line, "\n"), prefix)
			if !ok || strings.TrimSpace(list) == "" {
				continue
			}
			for _, span := range strings.Split(list, ", ") {
				first, last, found := strings.Cut(strings.TrimSpace(span), "-")
				if !found {
					last = first
				}
				for n := number(first); n <= number(last); n++ {
					set[n] = true
				}
			}
		}
	}
	return d
}

// TestInodesAsDebugfs compares the records, blocks and parents of all inodes with debugfs.
func TestInodesAsDebugfs(t *testing.T) {
	tree := source(t)
	for _, name := range slices.Sorted(maps.Keys(features())) {
		t.Run(name, func(t *testing.T) {
			path := image(t, imageBytes, tree, features()[name]...)
			f, err := open(t, path)
			require.NoError(t, err)
			var inodes []uint32
			require.NoError(t, f.Records(func(inode uint32, r ext4.Record) error {
				single, err := f.Record(inode)
				require.NoError(t, err)
				require.Equal(t, single, r)
				if !f.Reserved(inode) {
					inodes = append(inodes, inode)
				}
				return nil
			}))
			require.Greater(t, len(inodes), 300)
			reserved := f.ReservedInodes()
			theirs := inodesOf(t, path, append(slices.Clone(inodes), reserved...))
			depth, directories := 0, 0
			for _, inode := range inodes {
				r, err := f.Record(inode)
				require.NoError(t, err)
				require.Equal(t, repeated(theirs[inode].record, len(r)), []byte(r), "inode %d", inode)
				var blocks []uint64
				require.NoError(t, f.Extents(r, func(e ext4.Extent) error {
					for b := e.Start; b < e.End(); b++ {
						blocks = append(blocks, b)
					}
					if e.Node {
						depth++
					}
					return nil
				}))
				if b := r.AttributeBlock(); b != 0 {
					blocks = append(blocks, b)
				}
				slices.Sort(blocks)
				// debugfs takes the target of a short symbolic link for block numbers.
				if fast := r.Mode()&0xF000 == 0xA000 && len(blocks) == 0; !fast {
					require.Equal(t, theirs[inode].blocks, blocks, "inode %d", inode)
				}
				if r.Directory() {
					parent, err := f.Parent(r)
					require.NoError(t, err)
					require.Equal(t, theirs[inode].parent, parent, "inode %d", inode)
					directories++
				}
			}
			require.Greater(t, depth, 2)
			require.Greater(t, directories, 10)
			requireReserved(t, f, theirs, reserved)
		})
	}
}

// requireReserved compares the blocks of the file system's own inodes.
func requireReserved(t *testing.T, f *ext4.FileSystem, theirs map[uint32]inode, reserved []uint32) {
	t.Helper()
	own := map[uint64]struct{}{}
	for _, s := range f.Structures() {
		for b := s.Start; b < s.End(); b++ {
			own[b] = struct{}{}
		}
	}
	ours := map[uint64]struct{}{}
	require.NoError(t, f.ReservedBlocks(func(e ext4.Extent) error {
		for b := e.Start; b < e.End(); b++ {
			if _, structure := own[b]; structure {
				t.Fatalf("block %d of a reserved inode is one of the structures", b)
			}
			ours[b] = struct{}{}
		}
		return nil
	}))
	count := 0
	for _, n := range reserved {
		for _, b := range theirs[n].blocks {
			if _, structure := own[b]; !structure {
				if _, ok := ours[b]; !ok {
					t.Fatalf("block %d of the reserved inode %d is missing", b, n)
				}
				count++
			}
		}
	}
	require.Len(t, ours, count)
}

// inode is the output of debugfs for an inode.
type inode struct {
	record []byte
	blocks []uint64 // in order
	parent uint32
}

// inodesOf reads all inodes with one run of debugfs.
func inodesOf(t *testing.T, path string, inodes []uint32) map[uint32]inode {
	t.Helper()
	var commands strings.Builder
	for _, n := range inodes {
		fmt.Fprintf(&commands, "inode_dump <%d>\nblocks <%d>\nls -l <%d>\n", n, n, n)
	}
	output := tool(t, commands.String(), "debugfs", "-f", "-", path)
	found := map[uint32]inode{}
	current, command := uint32(0), ""
	for line := range strings.Lines(output) {
		if rest, ok := strings.CutPrefix(line, "debugfs: "); ok {
			fields := strings.Fields(rest)
			n, err := strconv.ParseUint(strings.Trim(fields[len(fields)-1], "<>"), 10, 32)
			require.NoError(t, err)
			current, command = uint32(n), fields[0]
			continue
		}
		i := found[current]
		switch fields := strings.Fields(line); {
		case len(fields) == 0:
		case command == "inode_dump":
			if fields[0] == "*" { // the previous line again, up to the next offset
				continue
			}
			offset, err := strconv.ParseUint(fields[0], 8, 16)
			require.NoError(t, err)
			i.record = repeated(i.record, int(offset))
			raw, err := hex.DecodeString(strings.ReplaceAll(line[6:46], " ", ""))
			require.NoError(t, err)
			i.record = append(i.record, raw...)
		case command == "blocks":
			for _, field := range fields {
				b, err := strconv.ParseUint(field, 10, 64)
				require.NoError(t, err)
				if b != 0 {
					i.blocks = append(i.blocks, b)
				}
			}
			slices.Sort(i.blocks)
			i.blocks = slices.Compact(i.blocks)
		case fields[len(fields)-1] == "..":
			n, err := strconv.ParseUint(fields[0], 10, 32)
			require.NoError(t, err)
			i.parent = uint32(n)
		}
		found[current] = i
	}
	return found
}

// repeated repeats the last line of a record up to the given size.
func repeated(record []byte, size int) []byte {
	for len(record) < size {
		record = append(record, record[len(record)-16:]...)
	}
	return record
}

func TestUnknownFeaturesAreUnsupported(t *testing.T) {
	for name, options := range map[string][]string{
		"bigalloc": {"-O", "bigalloc"}, "ea_inode": {"-O", "ea_inode"}, "encrypt": {"-O", "encrypt"},
		"casefold": {"-O", "casefold"}, "verity": {"-O", "verity"}, "mmp": {"-O", "mmp"}, "^filetype": {"-O", "^filetype"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := open(t, image(t, imageBytes, "", options...))
			require.ErrorContains(t, err, "unsupported operation")
		})
	}
	t.Run("blocks without extents", func(t *testing.T) {
		f, err := open(t, image(t, imageBytes, source(t), "-O", "^extent,^64bit"))
		require.NoError(t, err)
		err = f.Records(func(_ uint32, r ext4.Record) error { return f.Extents(r, func(ext4.Extent) error { return nil }) })
		require.ErrorContains(t, err, "an inode without extents: unsupported operation")
	})
}

// TestNotAtRest: Open refuses a file system that needs a journal replay, has errors or was not
// unmounted, and one that is truncated or not ext4.
func TestNotAtRest(t *testing.T) {
	for _, change := range []string{"feature needs_recovery", "set_super_value state 0", "set_super_value state 3",
		"set_super_value error_count 1"} {
		path := image(t, imageBytes, "")
		tool(t, change+"\n", "debugfs", "-w", "-f", "-", path)
		_, err := open(t, path)
		require.ErrorIs(t, err, ext4.ErrUnclean, change)
	}
	path := image(t, imageBytes, "")
	require.NoError(t, os.Truncate(path, imageBytes/2))
	_, err := open(t, path)
	require.ErrorIs(t, err, ext4.ErrDamaged)
	empty := image(t, imageBytes, "")
	require.NoError(t, os.Truncate(empty, 0))
	require.NoError(t, os.Truncate(empty, imageBytes))
	_, err = open(t, empty)
	require.ErrorIs(t, err, ext4.ErrNotExt4)
}
