package thinmeta_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
)

func metadataOf(t testing.TB, m *model) *thinmeta.Metadata {
	t.Helper()
	return open(t, load(t, restore(t, m.contents().dump(m.time), metadataBytes)))
}

func inherits(t testing.TB, m *thinmeta.Metadata, child, parent uint32) bool {
	t.Helper()
	does, err := m.Inherits(t.Context(), child, parent)
	require.NoError(t, err)
	return does
}

func TestInherits(t *testing.T) {
	write := func(m *model, id uint32, blocks ...uint64) {
		for _, b := range blocks {
			m.write(id, b)
		}
	}
	for name, c := range map[string]struct {
		do   func(m *model) // to volume 1, with blocks 0..9, and 2, a snapshot of it
		want bool
	}{
		"at once":                      {func(*model) {}, true},
		"child writes what is shared":  {func(m *model) { write(m, 2, 0, 5, 9) }, true},
		"child writes elsewhere":       {func(m *model) { write(m, 2, 10, 11) }, true},
		"child discards":               {func(m *model) { m.discard(2, 0); m.discard(2, 9) }, true},
		"parent has another child":     {func(m *model) { m.snapshot(3, 1); write(m, 3, 4) }, true},
		"parent's other child is gone": {func(m *model) { m.snapshot(3, 1); delete(m.volumes, 3) }, true},
		"child has a child":            {func(m *model) { m.snapshot(3, 2); write(m, 3, 4); write(m, 2, 5) }, true},
		"parent writes what is shared": {func(m *model) { write(m, 1, 5) }, false},
		"parent writes elsewhere":      {func(m *model) { write(m, 1, 10) }, false},
		"both write":                   {func(m *model) { write(m, 1, 5); write(m, 2, 5) }, false},
		"parent discards":              {func(m *model) { m.discard(1, 5) }, false},
		"parent discards the last":     {func(m *model) { m.discard(1, 9) }, false},
		"both discard":                 {func(m *model) { m.discard(1, 5); m.discard(2, 5) }, true},
		"child discards, parent writes": {func(m *model) {
			m.discard(2, 5)
			write(m, 1, 5)
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			m := newModel()
			m.create(1)
			write(m, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
			m.snapshot(2, 1)
			c.do(m)
			read := metadataOf(t, m)
			assert.Equal(t, c.want, inherits(t, read, 2, 1))
			assert.False(t, inherits(t, read, 1, 2), "the other way round")
			assert.False(t, inherits(t, read, 1, 1), "of itself")
		})
	}
}

// TestInheritsFromOthers is what the documentation says of volumes that are not
// the true parent.
func TestInheritsFromOthers(t *testing.T) {
	m := newModel()
	m.create(1)
	m.write(1, 0)
	m.create(10) // has nothing to do with 1
	m.write(10, 0)
	m.snapshot(2, 1)
	m.snapshot(3, 2)
	m.snapshot(11, 10)
	read := metadataOf(t, m)
	assert.False(t, inherits(t, read, 3, 1), "no snapshot of 1 was made when 3 was")
	assert.False(t, inherits(t, read, 3, 10), "10 has other blocks")
	assert.False(t, inherits(t, read, 11, 1))

	m.snapshot(4, 1)
	read = metadataOf(t, m)
	assert.True(t, inherits(t, read, 3, 1), "an ancestor, and 2 wrote nothing between")
	m.write(2, 5)
	m.snapshot(5, 2)
	m.snapshot(6, 1)
	m.create(20)
	m.snapshot(21, 20)
	read = metadataOf(t, m)
	assert.True(t, inherits(t, read, 4, 1))
	assert.False(t, inherits(t, read, 5, 1), "2 wrote between")
	assert.False(t, inherits(t, read, 21, 1), "no snapshot of 1 was made since")
	m.snapshot(7, 1)
	read = metadataOf(t, m)
	assert.True(t, inherits(t, read, 21, 1), "21 began with nothing")

	m.create(30)
	m.snapshot(31, 30)
	m.snapshot(32, 30)
	read = metadataOf(t, m)
	assert.False(t, inherits(t, read, 7, 30), "30 was made after 7, in the same time")
	assert.False(t, inherits(t, read, 31, 32), "32 was made after 31")
	assert.True(t, inherits(t, read, 31, 30))
}

// TestInheritsInRandomPools: true for every snapshot whose parent was left alone,
// and false for volumes that are not related, if they have anything in common to
// show.
func TestInheritsInRandomPools(t *testing.T) {
	var alone, unrelated int
	for range 4 {
		m := randomPool(random(t), 60, 300)
		read := metadataOf(t, m)
		for id, v := range m.volumes {
			if p := m.volumes[v.parent]; p != nil && p.edits == v.parentEdits {
				assert.True(t, inherits(t, read, id, v.parent), "%d of %d", id, v.parent)
				alone++
			}
			for other := range m.volumes {
				if m.founder(id) != m.founder(other) && m.keeps(id) {
					assert.False(t, inherits(t, read, id, other), "%d of %d", id, other)
					unrelated++
				}
			}
		}
	}
	require.Positive(t, alone)
	require.Positive(t, unrelated)
}

// founder is the volume that a volume's line begins with.
func (m *model) founder(id uint32) uint32 {
	for m.volumes[id].parent != 0 {
		id = m.volumes[id].parent
	}
	return id
}

// keeps reports whether a volume has anything left of what it began with.
func (m *model) keeps(id uint32) bool {
	v := m.volumes[id]
	for _, p := range v.mapped {
		if p.Time < v.CreationTime {
			return true
		}
	}
	return false
}
