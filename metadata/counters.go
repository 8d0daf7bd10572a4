package metadata

import "github.com/containerd/containerd/v2/core/snapshots"

var keyCounters = []byte("counters")

// counters save counting a hundred thousand records.
type counters struct {
	views, active, committed, trash uint64
}

func (c *counters) kind(k snapshots.Kind) *uint64 {
	switch k {
	case snapshots.KindView:
		return &c.views
	case snapshots.KindActive:
		return &c.active
	default:
		return &c.committed
	}
}

func (t *Tx) counters() (counters, error) {
	v := t.buckets.meta.Get(keyCounters)
	if v == nil {
		return counters{}, nil
	}
	d := newDecoder(v)
	c := counters{views: d.uvarint(), active: d.uvarint(), committed: d.uvarint(), trash: d.uvarint()}
	if err := d.finish(); err != nil {
		return counters{}, damaged("counters")
	}
	return c, nil
}

func (t *Tx) setCounters(c counters) error {
	e := newEncoder(16)
	for _, n := range []uint64{c.views, c.active, c.committed, c.trash} {
		e.uvarint(n)
	}
	return t.put(t.buckets.meta, keyCounters, e.b)
}

// CountByKind returns the numbers of snapshots. Its cost does not depend on them.
func (t *Tx) CountByKind() (KindCounts, error) {
	c, err := t.counters()
	return KindCounts{Views: int(c.views), Active: int(c.active), Committed: int(c.committed)}, err
}

// TrashCount returns the number of volumes in the trash. Its cost does not depend on it.
func (t *Tx) TrashCount() (int, error) {
	c, err := t.counters()
	return int(c.trash), err
}
