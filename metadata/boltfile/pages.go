package boltfile

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math/bits"
)

// The layout is that of bbolt's internal/common: numbers in the machine's byte order, checksums
// only on the two meta pages.
const (
	pageHeaderSize  = 16 // id u64, flags u16, count u16, overflow u32
	pageElementSize = 16 // of a branch: pos u32, ksize u32, page u64; of a leaf: flags u32, pos u32, ksize u32, vsize u32
	pageMetaSize    = 64 // magic, version, page size, flags u32; root, sequence, free list, end, transaction, checksum u64
	pageMagic       = 0xED0CDAED
	pageVersion     = 2

	flagBranch   = 0x01
	flagLeaf     = 0x02
	flagFreelist = 0x10

	noFreelist      = ^uint64(0)
	countElsewhere  = 0xFFFF // in a free list: its first number is the count
	leafIsBucket    = 0x01
	bucketValueSize = 16 // root page u64, sequence u64; an inline bucket's page follows, and its root is 0
)

type pageWalker struct {
	file io.ReaderAt
	size uint64 // of a page
	end  uint64 // number of pages
	seen map[uint64]bool
	// enter decides whether to read a bucket, given the names on its path.
	enter func(path []string) bool
}

// page is a page with its overflow pages.
type page struct {
	id    uint64
	flags uint16
	count int
	b     []byte // with the header
}

// Check reads the free list and the buckets chosen by enter, as of the last transaction. It returns
// an ErrDamaged that names the first invalid page, or ErrUnreadable with the error of a read. The
// file has the given size in bytes. Check needs memory for the largest page, and a few bytes for
// each page.
func Check(file io.ReaderAt, bytes int64, enter func(path []string) bool) error {
	meta, err := lastMeta(file)
	if err != nil {
		return err
	}
	w := &pageWalker{file: file, size: uint64(meta.size), end: meta.end, seen: make(map[uint64]bool), enter: enter}
	if meta.end > uint64(bytes)/w.size {
		return fmt.Errorf("%w: it has %d bytes, but should have %d pages of %d bytes", ErrDamaged, bytes, meta.end, w.size)
	}
	if err := w.freelist(meta.freelist); err != nil {
		return asDamaged(err)
	}
	if err := w.tree(meta.root, nil); err != nil {
		return asDamaged(err)
	}
	return nil
}

func asDamaged(err error) error {
	if errors.Is(err, ErrUnreadable) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}

type metaPage struct {
	size                      uint32
	root, freelist, end, last uint64
}

// lastMeta returns the later one of the intact meta pages. The second is at the offset of one page
// size, which is unknown if the first is damaged.
func lastMeta(file io.ReaderAt) (metaPage, error) {
	var newest metaPage
	var unreadable error
	found := false
	take := func(at int64) {
		m, ok, err := readMeta(file, at)
		if err != nil && !errors.Is(err, io.EOF) {
			unreadable = cmp.Or(unreadable, fmt.Errorf("%w: a meta page: %w", ErrUnreadable, err))
		}
		if ok && (!found || m.last > newest.last) && (at == 0 || at == int64(m.size)) {
			newest, found = m, true
		}
	}
	take(0)
	if found {
		take(int64(newest.size))
	} else {
		for size := int64(1 << 10); size <= 64<<10; size *= 2 {
			take(size)
		}
	}
	if unreadable != nil {
		return metaPage{}, unreadable // the later one may be unreadable
	}
	if !found {
		return metaPage{}, fmt.Errorf("%w: neither of its meta pages is intact", ErrDamaged)
	}
	return newest, nil
}

func readMeta(file io.ReaderAt, at int64) (m metaPage, ok bool, err error) {
	b := make([]byte, pageHeaderSize+pageMetaSize)
	if _, err := file.ReadAt(b, at); err != nil {
		return metaPage{}, false, err
	}
	ne := binary.NativeEndian
	b = b[pageHeaderSize:]
	h := fnv.New64a()
	_, _ = h.Write(b[:56]) // a hash never fails
	m = metaPage{
		size: ne.Uint32(b[8:]), root: ne.Uint64(b[16:]), freelist: ne.Uint64(b[32:]), end: ne.Uint64(b[40:]),
		last: ne.Uint64(b[48:]),
	}
	return m, ne.Uint32(b) == pageMagic && ne.Uint32(b[4:]) == pageVersion && ne.Uint64(b[56:]) == h.Sum64() &&
		bits.OnesCount32(m.size) == 1 && m.size >= 1<<10 && m.size <= 64<<10, nil
}

// read reads a page, and fails if it is used twice.
func (w *pageWalker) read(id uint64) (page, error) {
	if id < 2 || id >= w.end {
		return page{}, fmt.Errorf("page %d is outside of the file's %d pages", id, w.end)
	}
	header := make([]byte, pageHeaderSize)
	if _, err := w.file.ReadAt(header, int64(id*w.size)); err != nil {
		return page{}, fmt.Errorf("%w: page %d: %w", ErrUnreadable, id, err)
	}
	own, overflow := binary.NativeEndian.Uint64(header), uint64(binary.NativeEndian.Uint32(header[12:]))
	if own != id {
		return page{}, fmt.Errorf("page %d has the id %d", id, own)
	}
	if overflow >= w.end-id {
		return page{}, fmt.Errorf("page %d overflows into %d pages, but the file has %d", id, overflow, w.end)
	}
	for n := id; n <= id+overflow; n++ {
		if w.seen[n] {
			return page{}, fmt.Errorf("page %d is used twice", n)
		}
		w.seen[n] = true
	}
	b := make([]byte, (overflow+1)*w.size)
	if _, err := w.file.ReadAt(b, int64(id*w.size)); err != nil {
		return page{}, fmt.Errorf("%w: page %d: %w", ErrUnreadable, id, err)
	}
	return parsePage(b), nil
}

func parsePage(b []byte) page {
	ne := binary.NativeEndian
	return page{id: ne.Uint64(b), flags: ne.Uint16(b[8:]), count: int(ne.Uint16(b[10:])), b: b}
}

func (w *pageWalker) freelist(id uint64) error {
	if id == noFreelist {
		return nil
	}
	p, err := w.read(id)
	if err != nil {
		return fmt.Errorf("free list: %w", err)
	}
	if p.flags != flagFreelist {
		return fmt.Errorf("page %d is not a free list", id)
	}
	numbers, count := p.b[pageHeaderSize:], uint64(p.count)
	if count == countElsewhere {
		count, numbers = binary.NativeEndian.Uint64(numbers), numbers[8:]
	}
	if count > uint64(len(numbers)/8) {
		return fmt.Errorf("page %d has room for %d free pages, not for %d", id, len(numbers)/8, count)
	}
	for i := range count {
		free := binary.NativeEndian.Uint64(numbers[8*i:])
		if free < 2 || free >= w.end {
			return fmt.Errorf("free page %d is outside of the file's %d pages", free, w.end)
		}
		if w.seen[free] {
			return fmt.Errorf("page %d is free twice, or free and in use", free)
		}
		w.seen[free] = true
	}
	return nil
}

// tree reads a page and the pages below it. The path is that of their bucket.
func (w *pageWalker) tree(id uint64, path []string) error {
	p, err := w.read(id)
	if err != nil {
		return err
	}
	switch p.flags {
	case flagLeaf:
		return w.leaf(p, path)
	case flagBranch:
		if p.count == 0 {
			return fmt.Errorf("branch page %d has no elements", id)
		}
		for i := range p.count {
			_, e, err := p.element(i, 0, 4, 4)
			if err != nil {
				return err
			}
			if err := w.tree(binary.NativeEndian.Uint64(e[8:]), path); err != nil {
				return err
			}
		}
		return nil
	default:
		return fmt.Errorf("page %d is neither branch nor leaf", id)
	}
}

func (w *pageWalker) leaf(p page, path []string) error {
	for i := range p.count {
		data, e, err := p.element(i, 4, 8, 12)
		if err != nil {
			return err
		}
		if binary.NativeEndian.Uint32(e)&leafIsBucket == 0 {
			continue
		}
		keySize := binary.NativeEndian.Uint32(e[8:])
		key, value := string(data[:keySize]), data[keySize:]
		if err := w.bucket(value, append(path, key)); err != nil {
			return fmt.Errorf("bucket %q: %w", key, err)
		}
	}
	return nil
}

func (w *pageWalker) bucket(value []byte, path []string) error {
	if len(value) < bucketValueSize {
		return fmt.Errorf("its record has only %d bytes", len(value))
	}
	if root := binary.NativeEndian.Uint64(value); root != 0 {
		if !w.enter(path) {
			return nil
		}
		return w.tree(root, path)
	}
	inline := value[bucketValueSize:]
	if len(inline) < pageHeaderSize {
		return fmt.Errorf("its inline page has only %d bytes", len(inline))
	}
	p := parsePage(inline)
	if p.flags != flagLeaf {
		return fmt.Errorf("its inline page is not a leaf")
	}
	for i := range p.count {
		_, e, err := p.element(i, 4, 8, 12)
		if err != nil {
			return err
		}
		if binary.NativeEndian.Uint32(e)&leafIsBucket != 0 {
			return fmt.Errorf("it is inline, but contains a bucket")
		}
	}
	return nil
}

// element returns an element of a page, and the data in the page that it points to. pos, firstSize
// and lastSize are offsets of its fields: the position, and the adjacent sizes of the data's parts.
func (p page) element(i, pos, firstSize, lastSize int) (data, e []byte, err error) {
	at := pageHeaderSize + i*pageElementSize
	if at+pageElementSize > len(p.b) {
		return nil, nil, fmt.Errorf("page %d has no room for %d elements", p.id, p.count)
	}
	e = p.b[at : at+pageElementSize]
	from := uint64(at) + uint64(binary.NativeEndian.Uint32(e[pos:]))
	to := from
	for s := firstSize; s <= lastSize; s += 4 {
		to += uint64(binary.NativeEndian.Uint32(e[s:]))
	}
	if from > uint64(len(p.b)) || to > uint64(len(p.b)) {
		return nil, nil, fmt.Errorf("page %d ends within element %d", p.id, i)
	}
	return p.b[from:to], e, nil
}
