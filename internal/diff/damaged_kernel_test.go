package diff_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/ext4"
	"github.com/thinsnap/thinsnap/internal/diff"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// TestDamagedFileSystems changes random bytes of inodes, directories, attributes, extents and
// bitmaps, as a virtual machine can. If the walking differ can read the result, the layers are
// equal.
func TestDamagedFileSystems(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	// With checksums or a journal, the kernel would detect or repair the damage.
	i := newImages(t, []string{"-O", "^metadata_csum,^has_journal"}, func(dir string) {
		for n := range 60 {
			write(t, dir, fmt.Sprintf("usr/%d/share/%d", n%7, n), strings.Repeat("content", n*100))
		}
		write(t, dir, "fragmented", "")
		fragment(t, filepath.Join(dir, "fragmented"), 400)
		for n := range 5 {
			name := fmt.Sprintf("attr%d", n)
			write(t, dir, name, "y")
			require.NoError(t, unix.Setxattr(filepath.Join(dir, name), "user.fill", bytes.Repeat([]byte("f"), 60), 0))
			require.NoError(t, unix.Setxattr(filepath.Join(dir, name), "security.capability", rights(1), 0))
		}
		require.NoError(t, os.Link(filepath.Join(dir, "attr1"), filepath.Join(dir, "usr/attr")))
	}, func(dir string) {
		write(t, dir, "usr/3/new", "x")
		require.NoError(t, os.Remove(filepath.Join(dir, "attr2")))
		write(t, dir, "usr/4/share/11", "changed")
	})
	undamaged := i.upper
	whole, err := os.ReadFile(undamaged)
	require.NoError(t, err)
	targets, outcomes, rounds := metadata(t, whole), map[string]int{}, 5
	if dmtest.Thorough() {
		rounds = 100
	}
	for round := range rounds {
		random := rand.New(rand.NewPCG(1, uint64(round)))
		raw, damage := map[uint64]byte{}, ""
		for range 1 + random.IntN(3) {
			target := targets[random.IntN(len(targets))]
			at := target.Start*4096 + random.Uint64N(256)
			if random.IntN(2) == 0 {
				at = target.Start*4096 + random.Uint64N(target.Length*4096)
			}
			flip := byte(1 << random.IntN(8))
			if _, again := raw[at]; !again {
				raw[at] = whole[at]
			}
			if random.IntN(3) == 0 {
				raw[at] = byte(random.IntN(32))
			} else {
				raw[at] ^= flip
			}
			damage += fmt.Sprintf("block %d+%#x: %#x, was %#x\n", at/4096, at%4096, raw[at], whole[at])
		}
		i.upper = undamaged + ".damaged"
		copySparse(t, undamaged, i.upper)
		f, err := os.OpenFile(i.upper, os.O_WRONLY, 0)
		require.NoError(t, err)
		for at, b := range raw {
			_, err := f.WriteAt([]byte{b}, int64(at))
			require.NoError(t, err)
		}
		require.NoError(t, f.Close())
		i.opened(t, func(lower, upper diff.Volume, changed []diff.Range) {
			v := judge(t.Context(), lower, upper, changed)
			outcome := "the walking differ fails"
			if !v.differs {
				outcome = string(v.listing.Level)
			} else if err := sameLayer(t.Context(), lower, upper, v.listing); err == nil || errors.Is(err, errNotSame) {
				t.Errorf("round %d, %s, %q:\n%s%s", round, v.listing.Level, v.listing.Fallback, damage, v.report)
			}
			outcomes[outcome]++
		})
		require.NoError(t, os.Remove(i.upper))
	}
	t.Logf("%v", outcomes)
}

// metadata returns the blocks of an image that hold the metadata of files.
func metadata(t *testing.T, image []byte) (blocks []ext4.Span) {
	t.Helper()
	system, err := ext4.Open(bytes.NewReader(image), uint64(len(image)))
	require.NoError(t, err)
	one := func(block uint64) { blocks = append(blocks, ext4.Span{Start: block, Length: 1}) }
	for _, g := range system.Groups() {
		one(g.BlockBitmap)
		one(g.InodeBitmap)
		for n := range uint64(8) {
			one(g.InodeTable + n)
			one(g.InodeTable + n)
		}
	}
	require.NoError(t, system.Records(func(inode uint32, r ext4.Record) error {
		if system.Reserved(inode) {
			return nil
		}
		if block := r.AttributeBlock(); block != 0 {
			one(block)
		}
		return system.Extents(r, func(e ext4.Extent) error {
			if e.Node || r.Directory() {
				blocks = append(blocks, e.Span)
			}
			return nil
		})
	}))
	return blocks
}
