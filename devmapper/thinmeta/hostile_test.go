package thinmeta_test

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
)

func TestMetadataByHand(t *testing.T) {
	image := newImage(4)
	image.set(0, 4, 1)
	copy(image.block(0)[16:], "0123456789abcdef")
	image.set(0, 44, 3)
	image.set(0, 56, 77)
	m := open(t, image)
	s := m.Superblock()
	require.True(t, s.NeedsCheck)
	require.Equal(t, "0123456789abcdef", string(s.UUID[:]))
	require.Equal(t, uint32(3), s.Time)
	require.Equal(t, uint64(77), s.HeldRoot)
	c, err := read(t, m)
	require.NoError(t, err)
	require.Equal(t, []thinmeta.Mapping{{Virtual: 5, Data: 99, Time: 4}}, c.mappings[7])
}

// TestVolumeWithoutATree has a volume that the kernel can leave after a rollback.
func TestVolumeWithoutATree(t *testing.T) {
	image := newImage(4)
	image.details(1, 7, 8, 12)
	image.node(2, 2, pair{7, 3}, pair{9, 3}, pair{12, 3})
	m := open(t, image)
	whole, err := m.Whole(t.Context(), 7, 11)
	require.NoError(t, err)
	require.Equal(t, map[uint32]bool{7: true, 8: false}, whole)
	current, err := m.Current()
	require.NoError(t, err)
	require.True(t, current)
	image.set(0, 48, 2)
	current, err = m.Current()
	require.NoError(t, err)
	require.False(t, current)
}

// TestNoVolumes: the trees of a pool without volumes are leaves without entries.
func TestNoVolumes(t *testing.T) {
	image := newImage(4)
	image.details(1)
	image.node(2, 2)
	c, err := read(t, open(t, image))
	require.NoError(t, err)
	require.Empty(t, c.devices)
}

func TestOpenErrors(t *testing.T) {
	for name, c := range map[string]struct {
		change func(image) image
		block  uint64
		want   error
		text   string
	}{
		"nothing":          {func(image) image { return nil }, 0, thinmeta.ErrNoMetadata, "block 0"},
		"a part":           {func(m image) image { return m[:512] }, 0, thinmeta.ErrNoMetadata, "block 0"},
		"zeros":            {func(m image) image { clear(m); return m }, 0, thinmeta.ErrNoMetadata, "block 0"},
		"no snapshot":      {func(m image) image { return m }, 0, thinmeta.ErrNoMetadata, ""},
		"not a superblock": {func(m image) image { return m }, 3, thinmeta.ErrNoMetadata, "block 3"},
		"behind the end":   {func(m image) image { return m }, 4, thinmeta.ErrDamaged, "block 4"},
		"no such block":    {func(m image) image { return m }, 1 << 63, thinmeta.ErrDamaged, "block 9223372036854775808"},
		"checksum":         {func(m image) image { m[100] = 1; return m }, 0, thinmeta.ErrDamaged, "block 0"},
		"a copy":           {func(m image) image { copy(m.block(3), m.block(0)); return m }, 3, thinmeta.ErrDamaged, "block 3"},
		"features":         {func(m image) image { m.set(0, 360, 2); return m }, 0, errors.ErrUnsupported, "0x2"},
	} {
		t.Run(name, func(t *testing.T) {
			r := bytes.NewReader(c.change(newImage(4)))
			var err error
			if c.block == 0 && name != "no snapshot" {
				_, err = thinmeta.Open(r)
			} else {
				_, err = thinmeta.OpenSnapshot(r, c.block)
			}
			require.ErrorIs(t, err, c.want)
			require.ErrorContains(t, err, c.text)
		})
	}
}

// TestReadErrors: read errors are not damage.
func TestReadErrors(t *testing.T) {
	broken := errors.New("broken")
	_, err := thinmeta.Open(readerAt{iotest.ErrReader(broken)})
	require.ErrorIs(t, err, broken)
	require.NotErrorIs(t, err, thinmeta.ErrDamaged)
	require.NotErrorIs(t, err, thinmeta.ErrNoMetadata)
}

type readerAt struct{ io.Reader }

func (r readerAt) ReadAt(p []byte, _ int64) (int, error) { return r.Read(p) }

// TestHostileTrees have blocks with correct checksums that contradict each other.
func TestHostileTrees(t *testing.T) {
	everywhere := make([]pair, 252)
	for i := range everywhere {
		everywhere[i] = pair{uint64(i) << 32, 4}
	}
	for name, c := range map[string]struct {
		change func(image)
		want   string
	}{
		"flags":          {func(m image) { m.set(3, 4, 3) }, "block 3: metadata is damaged: unknown flags 0x3 of a node"},
		"value size":     {func(m image) { m.set(3, 24, 16) }, "block 3: metadata is damaged: values of 16 bytes"},
		"huge values":    {func(m image) { m.set(3, 24, 1<<32-8) }, "block 3: metadata is damaged: values of 4294967288 bytes"},
		"a mapping tree": {func(m image) { m.set(0, 328, 2) }, "block 2: metadata is damaged: values of 8 bytes, not 24"},
		"room":           {func(m image) { m.set(3, 20, 255) }, "block 3: metadata is damaged: room for 255 entries where 254 fit"},
		"huge room":      {func(m image) { m.set(3, 20, 1<<32-1) }, "block 3: metadata is damaged: room for 4294967295"},
		"entries":        {func(m image) { m.set(3, 16, 253) }, "block 3: metadata is damaged: 253 entries in room for 252"},
		"same key":       {func(m image) { m.node(3, 2, pair{5, 0}, pair{5, 1}) }, "block 3: metadata is damaged: key 5 before 5"},
		"order":          {func(m image) { m.node(3, 2, pair{5, 0}, pair{4, 1}) }, "block 3: metadata is damaged: key 5 before 4"},
		"empty internal": {func(m image) { m.node(3, 1) }, "block 3: metadata is damaged: a node without entries"},
		"empty child": {func(m image) {
			m.node(3, 1, pair{0, 4})
			m.node(4, 2)
		}, "block 4: metadata is damaged: a node without entries"},
		"itself":       {func(m image) { m.node(3, 1, pair{5, 3}) }, "block 3: metadata is damaged: it is below itself"},
		"a way back":   {func(m image) { m.node(3, 1, pair{0, 4}); m.node(4, 1, pair{0, 3}) }, "block 3: metadata is damaged: it is below itself"},
		"a superblock": {func(m image) { m.node(2, 2, pair{7, 0}) }, "block 0: metadata is damaged: checksum"},
		"a wrong copy": {func(m image) { copy(m.block(4), m.block(3)); m.node(2, 2, pair{7, 4}) }, "block 4: metadata is damaged: it has the number 3"},
		"end":          {func(m image) { m.node(2, 2, pair{7, 40}) }, "block 40: metadata is damaged: it is past the end"},
		"overflow":     {func(m image) { m.node(2, 2, pair{7, 1 << 52}) }, "block 4503599627370496: metadata is damaged: its number is too large"},
		"below its keys": {func(m image) {
			m.node(3, 1, pair{10, 4}, pair{20, 5})
			m.node(4, 2, pair{9, 1})
		}, "block 4: metadata is damaged: keys 9..9, not in 10..19"},
		"above its keys": {func(m image) {
			m.node(3, 1, pair{10, 4}, pair{20, 5})
			m.node(4, 2, pair{10, 1}, pair{20, 1})
		}, "block 4: metadata is damaged: keys 10..20, not in 10..19"},
		// A node with 252 pointers to a node with 252 pointers to the next would take forever.
		"many ways": {func(m image) {
			m.node(3, 1, everywhere...)
			m.node(4, 2, pair{0, 1})
		}, "block 4: metadata is damaged: keys 0..0, not in 4294967296..8589934591"},
		"deep": {func(m image) {
			for i := 3; i < 30; i++ {
				m.node(i, 1, pair{0, uint64(i + 1)})
			}
		}, "block 19: metadata is damaged: it is at a depth of more than 16 levels"},
		"an id too large": {func(m image) { m.details(1, 7, 1<<32) }, "block 1: metadata is damaged: a volume with id 4294967296"},
		"no tree":         {func(m image) { m.node(2, 2, pair{8, 3}) }, "block 1: metadata is damaged: a volume without a mapping tree"},
	} {
		t.Run(name, func(t *testing.T) {
			image := newImage(32)
			c.change(image)
			_, err := read(t, open(t, image))
			require.ErrorIs(t, err, thinmeta.ErrDamaged)
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestMappingsWithoutVolume(t *testing.T) {
	image := newImage(4)
	image.details(1, 8)
	m := open(t, image)
	for _, err := range m.Mappings(t.Context(), 7) {
		require.ErrorIs(t, err, thinmeta.ErrDamaged)
		require.ErrorContains(t, err, "volume 7: block 2")
	}
}
