package thinmeta_test

import (
	"encoding/binary"
	"hash/crc32"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
)

// cow is a pool whose volumes share nodes as in the kernel: a node with more than one reference is
// copied before a change (dm_tm_shadow_block). thin_restore shares none.
type cow struct {
	r       *rand.Rand
	entries int // capacity of a node; a small one makes high trees
	blocks  uint64
	least   int // blocks of metadata
	time    uint32
	volumes map[uint32]*cowVolume
	data    map[uint64]uint32 // references to the pool's blocks, by leaves
}

type cowVolume struct {
	root             *cowNode
	created, snapped uint32
}

type cowNode struct {
	leaf     bool
	keys     []uint64
	values   []uint64   // of a leaf
	children []*cowNode // of another node
	refs     uint32
}

func newCow(r *rand.Rand, entries int, blocks uint64) *cow {
	return &cow{r: r, entries: entries, blocks: blocks, volumes: map[uint32]*cowVolume{}, data: map[uint64]uint32{}}
}

func (c *cow) create(id uint32) {
	c.volumes[id] = &cowVolume{root: &cowNode{leaf: true, refs: 1}, created: c.time, snapped: c.time}
}

func (c *cow) snapshot(id, origin uint32) {
	c.time++
	o := c.volumes[origin]
	o.snapped = c.time
	o.root.refs++
	c.volumes[id] = &cowVolume{root: o.root, created: c.time, snapped: c.time}
}

func (c *cow) remove(id uint32) {
	c.drop(c.volumes[id].root)
	delete(c.volumes, id)
}

func (c *cow) drop(n *cowNode) {
	if n.refs--; n.refs > 0 {
		return
	}
	for _, v := range n.values {
		c.data[v>>24]--
	}
	for _, child := range n.children {
		c.drop(child)
	}
}

func (c *cow) shadow(n *cowNode) *cowNode {
	if n.refs == 1 {
		return n
	}
	n.refs--
	for _, v := range n.values {
		c.data[v>>24]++
	}
	for _, child := range n.children {
		child.refs++
	}
	return &cowNode{
		leaf: n.leaf, keys: slices.Clone(n.keys), values: slices.Clone(n.values),
		children: slices.Clone(n.children), refs: 1,
	}
}

// write maps a block of a volume to a new block of the pool.
func (c *cow) write(id uint32, virtual uint64) {
	data := c.r.Uint64N(c.blocks)
	for c.data[data] > 0 {
		data = (data + 1) % c.blocks
	}
	c.data[data]++
	v := c.volumes[id]
	v.root = c.shadow(v.root)
	c.put(v.root, virtual, data<<24|uint64(c.time))
	if len(v.root.keys) > c.entries {
		left := v.root
		v.root = &cowNode{keys: []uint64{left.keys[0]}, children: []*cowNode{left}, refs: 1}
		c.split(v.root, 0)
	}
}

func (c *cow) put(n *cowNode, key, value uint64) {
	i, found := slices.BinarySearch(n.keys, key)
	if n.leaf {
		if found {
			c.data[n.values[i]>>24]--
			n.values[i] = value
			return
		}
		n.keys, n.values = slices.Insert(n.keys, i, key), slices.Insert(n.values, i, value)
		return
	}
	if !found {
		i = max(i-1, 0)
	}
	n.keys[i] = min(n.keys[i], key)
	n.children[i] = c.shadow(n.children[i])
	c.put(n.children[i], key, value)
	if len(n.children[i].keys) > c.entries {
		c.split(n, i)
	}
}

func (c *cow) split(n *cowNode, i int) {
	left := n.children[i]
	at := len(left.keys) / 2
	right := &cowNode{leaf: left.leaf, keys: slices.Clone(left.keys[at:]), refs: 1}
	left.keys = left.keys[:at]
	if left.leaf {
		right.values, left.values = slices.Clone(left.values[at:]), left.values[:at]
	} else {
		right.children, left.children = slices.Clone(left.children[at:]), left.children[:at]
	}
	n.keys, n.children = slices.Insert(n.keys, i+1, right.keys[0]), slices.Insert(n.children, i+1, right)
}

func (c *cow) discard(id uint32, virtual uint64) {
	v := c.volumes[id]
	if _, found := v.root.mapped()[virtual]; !found {
		return
	}
	v.root = c.shadow(v.root)
	c.cut(v.root, virtual)
	for !v.root.leaf && len(v.root.keys) == 1 { // the tree gets lower
		v.root = v.root.children[0]
	}
	if len(v.root.keys) == 0 {
		v.root.leaf = true
	}
}

func (c *cow) cut(n *cowNode, key uint64) {
	i, found := slices.BinarySearch(n.keys, key)
	if n.leaf {
		c.data[n.values[i]>>24]--
		n.keys, n.values = slices.Delete(n.keys, i, i+1), slices.Delete(n.values, i, i+1)
		return
	}
	if !found {
		i--
	}
	n.children[i] = c.shadow(n.children[i])
	c.cut(n.children[i], key)
	switch {
	case len(n.children[i].keys) >= c.entries/3:
	case len(n.keys) == 1 && len(n.children[i].keys) == 0:
		n.keys, n.children = nil, nil
	case len(n.keys) > 1:
		c.merge(n, min(i, len(n.keys)-2))
	}
}

// merge joins a child of a node with the next one, or balances the two.
func (c *cow) merge(n *cowNode, i int) {
	left, right := c.shadow(n.children[i]), c.shadow(n.children[i+1])
	left.keys = append(left.keys, right.keys...)
	left.values, left.children = append(left.values, right.values...), append(left.children, right.children...)
	n.keys[i], n.children[i] = left.keys[0], left
	n.keys, n.children = slices.Delete(n.keys, i+1, i+2), slices.Delete(n.children, i+1, i+2)
	if len(left.keys) > c.entries {
		c.split(n, i)
	}
}

// mapped returns the pool's blocks by the volume's blocks.
func (n *cowNode) mapped() map[uint64]uint64 {
	all := map[uint64]uint64{}
	for i, key := range n.keys {
		if n.leaf {
			all[key] = n.values[i] >> 24
		} else {
			maps.Copy(all, n.children[i].mapped())
		}
	}
	return all
}

// randomCow changes a pool at random. Its volumes have up to span blocks.
func randomCow(r *rand.Rand, entries, volumes, span int) *cow {
	c := newCow(r, entries, uint64(volumes*span*2+20_000))
	var ids []uint32
	id := uint32(0)
	for range volumes {
		id += 1 + uint32(r.IntN(5))
		if len(ids) == 0 || r.IntN(6) == 0 {
			c.create(id)
		} else {
			c.snapshot(id, ids[r.IntN(len(ids))])
		}
		ids = append(ids, id)
		for range r.IntN(4) {
			c.scribble(ids[r.IntN(len(ids))], span)
		}
		if len(ids) > 2 && r.IntN(8) == 0 {
			i := r.IntN(len(ids))
			c.remove(ids[i])
			ids = slices.Delete(ids, i, i+1)
		}
	}
	return c
}

func (c *cow) scribble(id uint32, span int) {
	change := c.write
	if c.r.IntN(3) == 0 {
		change = c.discard
	}
	start, length, stride := c.r.IntN(span), 1+c.r.IntN(span/4+1), 1+c.r.IntN(3)
	for i := range length {
		change(id, uint64(start+i*stride))
	}
}

// image renders the metadata with its space maps, with the nodes in random order.
func (c *cow) image(t testing.TB) image {
	t.Helper()
	w := &cowWriter{cow: c, free: []int{}, refs: map[int]uint32{0: 1}, numbers: map[*cowNode]int{}}
	ids := slices.Sorted(maps.Keys(c.volumes))
	// The size is close to the need: a tree of n entries has at most n/2+1 nodes.
	size := 64
	for _, id := range ids {
		size += w.count(c.volumes[id].root) + 4
	}
	size = max(size+(len(c.data)+size)/2, c.least)
	w.image = make(image, size*4096)
	for number := 1; number < size; number++ {
		w.free = append(w.free, number)
	}
	c.r.Shuffle(len(w.free), func(i, j int) { w.free[i], w.free[j] = w.free[j], w.free[i] })
	clear(w.numbers)

	var roots, details []record
	for _, id := range ids {
		v := c.volumes[id]
		roots = append(roots, record{uint64(id), le64(uint64(w.node(v.root)))})
		d := binary.LittleEndian.AppendUint64(nil, uint64(len(v.root.mapped())))
		d = binary.LittleEndian.AppendUint64(d, 7)
		d = binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(d, v.created), v.snapped)
		details = append(details, record{uint64(id), d})
	}
	b := w.block(0)
	binary.LittleEndian.PutUint64(b[32:], magic)
	binary.LittleEndian.PutUint32(b[40:], 2)
	binary.LittleEndian.PutUint32(b[44:], c.time)
	binary.LittleEndian.PutUint64(b[320:], uint64(w.tree(roots, 8)))
	binary.LittleEndian.PutUint64(b[328:], uint64(w.tree(details, 24)))
	binary.LittleEndian.PutUint32(b[336:], 128)
	binary.LittleEndian.PutUint32(b[340:], 8)
	binary.LittleEndian.PutUint64(b[344:], uint64(size))
	w.dataMap(b[64:])
	w.metadataMap(b[192:], uint64(size))
	w.seal(0)
	return w.image
}

type record struct {
	key   uint64
	value []byte
}

func le64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

type cowWriter struct {
	image
	cow     *cow
	free    []int
	refs    map[int]uint32 // of the used blocks
	numbers map[*cowNode]int
}

func (w *cowWriter) count(n *cowNode) int {
	if _, known := w.numbers[n]; known {
		return 0
	}
	w.numbers[n] = 0
	count := 1
	for _, child := range n.children {
		count += w.count(child)
	}
	return count
}

func (w *cowWriter) take(refs uint32) int {
	number := w.free[0]
	w.free = w.free[1:]
	w.refs[number] = refs
	return number
}

func (w *cowWriter) node(n *cowNode) int {
	if number, known := w.numbers[n]; known {
		return number
	}
	number := w.take(n.refs)
	w.numbers[n] = number
	records := make([]record, len(n.keys))
	for i, key := range n.keys {
		if n.leaf {
			records[i] = record{key, le64(n.values[i])}
		} else {
			records[i] = record{key, le64(uint64(w.node(n.children[i])))}
		}
	}
	w.records(number, n.leaf, records, 8)
	return number
}

func (w *cowWriter) records(number int, leaf bool, records []record, valueBytes int) {
	flags := uint32(1)
	if leaf {
		flags = 2
	}
	limit := w.limit(valueBytes)
	w.header(number, flags, len(records), limit, valueBytes)
	b := w.block(number)
	for i, r := range records {
		binary.LittleEndian.PutUint64(b[32+8*i:], r.key)
		copy(b[32+8*limit+valueBytes*i:], r.value)
	}
	w.seal(number)
}

// limit returns the capacity of a node, which the tools require to be a multiple of 3.
func (w *cowWriter) limit(valueBytes int) int {
	return min(w.cow.entries, (4096-32)/(8+valueBytes)/3*3)
}

// tree writes a tree that shares no node.
func (w *cowWriter) tree(records []record, valueBytes int) (root int) {
	for leaf := true; ; leaf, valueBytes = false, 8 {
		var above []record
		// Fill nodes evenly: the tools require each to be a third full.
		limit := w.limit(valueBytes)
		nodes := max(1, (len(records)+limit-1)/limit)
		for i := range nodes {
			part := records[len(records)*i/nodes : len(records)*(i+1)/nodes]
			root = w.take(1)
			w.records(root, leaf, part, valueBytes)
			if len(part) > 0 {
				above = append(above, record{part[0].key, le64(uint64(root))})
			}
		}
		if len(above) <= 1 {
			return root
		}
		records = above
	}
}

const mapEntries = (4096 - 16) * 4

// dataMap writes the space map of the data (dm-space-map-disk.c), and its root.
func (w *cowWriter) dataMap(root []byte) {
	var index []record
	for first := uint64(0); first < w.cow.blocks; first += mapEntries {
		number := w.take(1)
		entry := w.bitmap(number, first, w.cow.blocks, func(i uint64) uint32 { return w.cow.data[i] })
		index = append(index, record{first / mapEntries, entry})
	}
	var many []record
	used := uint64(0)
	for _, data := range slices.Sorted(maps.Keys(w.cow.data)) {
		if refs := w.cow.data[data]; refs > 0 {
			used++
			if refs > 2 {
				many = append(many, record{data, binary.LittleEndian.AppendUint32(nil, refs)})
			}
		}
	}
	w.mapRoot(root, w.cow.blocks, used, w.tree(index, 16), w.tree(many, 4))
}

// metadataMap writes the space map of the metadata (dm-space-map-metadata.c), and its root.
func (w *cowWriter) metadataMap(root []byte, size uint64) {
	var many []record
	for _, number := range slices.Sorted(maps.Keys(w.refs)) {
		if refs := w.refs[number]; refs > 2 {
			many = append(many, record{uint64(number), binary.LittleEndian.AppendUint32(nil, refs)})
		}
	}
	counts := w.tree(many, 4)
	index := w.take(1)
	var bitmaps []int
	for first := uint64(0); first < size; first += mapEntries {
		bitmaps = append(bitmaps, w.take(1))
	}
	b := w.block(index)
	for i, number := range bitmaps {
		copy(b[16+16*i:], w.bitmap(number, uint64(i)*mapEntries, size, func(i uint64) uint32 { return w.refs[int(i)] }))
	}
	w.sealAs(index, indexSalt)
	w.mapRoot(root, size, uint64(len(w.refs)), index, counts)
}

func (w *cowWriter) mapRoot(root []byte, blocks, used uint64, bitmaps, counts int) {
	binary.LittleEndian.PutUint64(root, blocks)
	binary.LittleEndian.PutUint64(root[8:], used)
	binary.LittleEndian.PutUint64(root[16:], uint64(bitmaps))
	binary.LittleEndian.PutUint64(root[24:], uint64(counts))
}

const (
	bitmapSalt = 240779
	indexSalt  = 160478
)

// bitmap writes a bitmap and returns its struct disk_index_entry.
func (w *cowWriter) bitmap(number int, first, end uint64, refs func(uint64) uint32) []byte {
	b := w.block(number)
	free, firstFree := uint32(0), uint32(0)
	for i := uint64(0); i < mapEntries && first+i < end; i++ {
		n := min(refs(first+i), 3)
		if n == 0 {
			if free++; free == 1 {
				firstFree = uint32(i)
			}
		}
		b[16+i/4] |= byte(n>>1|n&1<<1) << (i % 4 * 2)
	}
	w.sealAs(number, bitmapSalt)
	entry := binary.LittleEndian.AppendUint64(nil, uint64(number))
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(entry, free), firstFree)
}

func (w *cowWriter) sealAs(number int, salt uint32) {
	b := w.block(number)
	binary.LittleEndian.PutUint64(b[8:], uint64(number))
	binary.LittleEndian.PutUint32(b, ^crc32.Checksum(b[4:], crc32.MakeTable(crc32.Castagnoli))^salt)
}

// runs returns the runs that Delta must yield for two volumes.
func (c *cow) runs(left, right map[uint64]uint64) []thinmeta.Run {
	union := map[uint64]uint64{}
	maps.Copy(union, left)
	maps.Copy(union, right)
	var runs []thinmeta.Run
	for _, virtual := range slices.Sorted(maps.Keys(union)) {
		l, isLeft := left[virtual]
		r, isRight := right[virtual]
		if isLeft && isRight && l == r {
			continue
		}
		if n := len(runs); n > 0 {
			last := &runs[n-1]
			if last.Virtual+last.Length == virtual && last.Left == isLeft && last.Right == isRight {
				last.Length++
				continue
			}
		}
		runs = append(runs, thinmeta.Run{Virtual: virtual, Length: 1, Left: isLeft, Right: isRight})
	}
	return runs
}
