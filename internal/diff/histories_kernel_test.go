package diff_test

import (
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/internal/diff"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/dmtest/fshistory"
)

const mib = 1 << 20

// ordinary is thinsnap's default layout, with blocks of 4 KiB as on a larger device.
func ordinary() layout {
	return layout{name: "ext4", filesystem: filesystem.Ext4, mkfs: []string{"-b", "4096"}, bytes: 64 * mib}
}

// others are layouts that an operator or a virtual machine may choose. xfs is repeated, to be
// tested more often.
func others() []layout {
	ext4 := func(name string, mkfs ...string) layout {
		return layout{name: "ext4, " + name, filesystem: filesystem.Ext4, mkfs: mkfs, bytes: 64 * mib}
	}
	xfs := layout{name: "xfs", filesystem: filesystem.XFS, bytes: 300 * mib}
	plain := layout{name: "xfs without reflink", filesystem: filesystem.XFS, bytes: 300 * mib, mkfs: []string{"-m", "reflink=0"}}
	lazy, grown := ext4("lazytime", "-b", "4096"), ext4("grown", "-b", "4096")
	lazy.options, grown.grown = "lazytime", 400*mib
	bare := ext4("without journal", "-b", "4096", "-O", "^has_journal")
	bare.neverCut = true
	return []layout{
		xfs, lazy, ext4("blocks of 1 KiB", "-b", "1024"), ext4("inline data", "-b", "4096", "-O", "inline_data"),
		xfs, grown, ext4("without checksums", "-b", "4096", "-O", "^metadata_csum"), bare,
		xfs, plain, ext4("blocks of 2 KiB", "-b", "2048"), ext4("32 bits", "-b", "4096", "-O", "^64bit"),
		ext4("inodes for attributes", "-b", "4096", "-O", "ea_inode"),
		ext4("clusters", "-b", "4096", "-O", "bigalloc", "-C", "16384"),
		ext4("without extents", "-b", "4096", "-O", "^extent,^64bit"),
		ext4("small inodes", "-b", "4096", "-I", "128"),
		ext4("meta_bg", "-b", "1024", "-O", "meta_bg,^resize_inode"),
		ext4("fast commits", "-b", "4096", "-O", "fast_commit"),
		ext4("large inodes with data", "-b", "1024", "-I", "1024", "-O", "inline_data,large_dir,project,orphan_file"),
		ext4("small groups", "-b", "1024", "-g", "1024", "-G", "4", "-O", "sparse_super2,^resize_inode"),
		ext4("groups alone", "-b", "1024", "-O", "^flex_bg,^dir_index"),
		ext4("groups with flags", "-b", "4096", "-O", "uninit_bg,^metadata_csum,^extra_isize,^huge_file"),
	}
}

// number returns the value of an environment variable.
func number(t *testing.T, variable string, otherwise int) int {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	require.NoError(t, err, variable)
	return n
}

// perImage is the number of histories that start from the same image.
const perImage = 4

// TestHistories compares the layers of random histories with those of the walking differ.
// THINSNAP_HISTORIES is the number of histories, THINSNAP_SEED the number of the first image.
func TestHistories(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	s := newStand(t)
	seed, images := number(t, "THINSNAP_SEED", 0), number(t, "THINSNAP_HISTORIES", 16)/perImage
	c := tally{levels: map[string]map[diff.Level]int{}, fallbacks: map[string]int{}}
	for i := seed; i < seed+images; i++ {
		l := ordinary()
		if all := others(); i%2 == 1 {
			l = all[i/2%len(all)]
		}
		s.image(uint64(i), l, c)
	}
	for _, name := range slices.Sorted(maps.Keys(c.levels)) {
		t.Logf("%s: %v", name, c.levels[name])
	}
	for reason, n := range c.fallbacks {
		t.Logf("%d walks: %s", n, reason)
	}
	of := c.levels[ordinary().name]
	require.GreaterOrEqual(t, 100*of[diff.Inodes], 95*(of[diff.Inodes]+of[diff.Walk]), "percent of histories of the ordinary layout")
}

type tally struct {
	levels    map[string]map[diff.Level]int // by the layout's name
	fallbacks map[string]int                // by the layout's name and the reason
}

func (c tally) add(name string, listing diff.Listing) {
	if c.levels[name] == nil {
		c.levels[name] = map[diff.Level]int{}
	}
	c.levels[name][listing.Level]++
	if listing.Fallback != "" {
		c.fallbacks[name+": "+listing.Fallback]++
	}
}

// image creates an image and volumes that changed it, and compares each volume with the image. For
// half of the images it also compares the volumes with one another.
func (s *stand) image(seed uint64, l layout, c tally) {
	s.t.Helper()
	random, g := rand.New(rand.NewPCG(seed, 2)), fshistory.New(seed, l.filesystem)
	layers := []fshistory.Script{g.Image(20 + random.IntN(60))}
	for range random.IntN(3) {
		layers = append(layers, g.Image(10))
	}
	image := side{id: s.lower(l, layers), bytes: l.bytes}
	var uppers [perImage]side
	for i := range uppers {
		state := []state{committed, running, cut}[random.IntN(3)]
		if state == cut && l.neverCut {
			state = running
		}
		script := g.Fork(seed<<8 + uint64(i)).Changes(1 + random.IntN(60))
		uppers[i] = s.upper(l, image.id, script, state)
		v := s.compare(l, image, uppers[i])
		c.add(l.name, v.listing)
		if v.differs {
			s.t.Errorf("THINSNAP_SEED=%d, history %d (%s, %s):\n%s", seed, i, l.name, state, v.report)
			s.t.Logf("a shorter script that shows it:\n%s", s.shrink(l, image, script, state))
		}
	}
	if random.IntN(2) == 0 {
		s.pairs(seed, l, image, uppers)
	}
	for _, upper := range uppers {
		s.delete(upper.id)
	}
	s.delete(image.id)
}

// pairs compares volumes that are not each other's parent.
func (s *stand) pairs(seed uint64, l layout, image side, uppers [perImage]side) {
	s.t.Helper()
	base := side{id: s.empty(l), bytes: l.bytes}
	for what, pair := range map[string][2]side{
		"the first beyond nothing": {base, uppers[0]}, "the second beyond the first": {uppers[0], uppers[1]},
		"the image beyond the third": {uppers[2], image}, "the third beyond the fourth": {uppers[3], uppers[2]},
	} {
		if v := s.compare(l, pair[0], pair[1]); v.differs {
			s.t.Errorf("THINSNAP_SEED=%d, %s (%s):\n%s", seed, what, l.name, v.report)
		}
	}
}

// shrink returns a shorter script whose layer also differs.
func (s *stand) shrink(l layout, lower side, script fshistory.Script, state state) fshistory.Script {
	s.t.Helper()
	return fshistory.Shrink(script, 60, func(script fshistory.Script) bool {
		upper := s.upper(l, lower.id, script, state)
		defer s.delete(upper.id)
		return s.compare(l, lower, upper).differs
	})
}
