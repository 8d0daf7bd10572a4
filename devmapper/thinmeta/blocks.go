package thinmeta

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
)

// MappedBlocks returns the number of the pool's blocks that volumes map, each counted once. It
// reads each node of the mapping trees once, even if volumes share it, and keeps a bit for each
// block in memory.
func (m *Metadata) MappedBlocks(ctx context.Context) (uint64, error) {
	nodes, data := make(numberSet), make(numberSet)
	for root, err := range m.mappingTrees().entries(ctx, 0, math.MaxUint64) {
		if err != nil {
			return 0, fmt.Errorf("read the mapping trees in the metadata: %w", err)
		}
		t := tree{r: m.r, root: binary.LittleEndian.Uint64(root.value), valueBytes: blockTimeBytes, skip: nodes.set}
		for e, err := range t.entries(ctx, 0, math.MaxUint64) {
			if err != nil {
				return 0, fmt.Errorf("mappings of volume %d: %w", root.key, err)
			}
			data.set(binary.LittleEndian.Uint64(e.value) >> timeBits)
		}
	}
	return data.count(), nil
}

// numberSet is a set of block numbers in pages, by their high bits, so large numbers from damaged
// metadata take no more memory.
type numberSet map[uint64]*numberPage

const pageBits = 1 << 15

type numberPage struct {
	words [pageBits / 64]uint64
	count uint64
}

// set adds a number, and reports whether the set had it already.
func (s numberSet) set(n uint64) bool {
	p := s[n/pageBits]
	if p == nil {
		p = new(numberPage)
		s[n/pageBits] = p
	}
	word, bit := &p.words[n%pageBits/64], uint64(1)<<(n%64)
	if *word&bit != 0 {
		return true
	}
	*word |= bit
	p.count++
	return false
}

func (s numberSet) count() (n uint64) {
	for _, p := range s {
		n += p.count
	}
	return n
}
