package metadata

import "github.com/containerd/containerd/v2/core/snapshots"

var keyCounters = []byte("counters")

// counters make counting independent of the number of records.
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

func (t *Tx) counters() (counters, error) { return t.countersOf("") }

// countersOf returns the counters of a key space. Those of the default one include all other key
// spaces.
func (t *Tx) countersOf(space string) (counters, error) {
	v := t.buckets.meta.Get(spaceKey(keyCounters, space))
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

func (t *Tx) setCounters(c counters) error { return t.setCountersOf("", c) }

// countInSpace changes the counters of the key space of a key, except the default one.
func (t *Tx) countInSpace(key string, change func(*counters)) error {
	space, _ := SplitKey(key)
	if space == "" {
		return nil
	}
	c, err := t.countersOf(space)
	if err != nil {
		return err
	}
	change(&c)
	return t.setCountersOf(space, c)
}

func (t *Tx) setCountersOf(space string, c counters) error {
	e := newEncoder(16)
	for _, n := range []uint64{c.views, c.active, c.committed, c.trash} {
		e.uvarint(n)
	}
	return t.put(t.buckets.meta, spaceKey(keyCounters, space), e.b)
}

// CountByKind returns the numbers of snapshots of all key spaces, without reading them.
func (t *Tx) CountByKind() (KindCounts, error) {
	c, err := t.counters()
	return KindCounts{Views: int(c.views), Active: int(c.active), Committed: int(c.committed)}, err
}

// CountByKindIn returns the numbers of snapshots of a key space, without reading them.
func (t *Tx) CountByKindIn(space string) (KindCounts, error) {
	c, err := t.countersOf(space)
	if err != nil || space != "" {
		return KindCounts{Views: int(c.views), Active: int(c.active), Committed: int(c.committed)}, err
	}
	for _, other := range t.KeySpaces() {
		own, err := t.countersOf(other)
		if err != nil {
			return KindCounts{}, err
		}
		if own.views > c.views || own.active > c.active || own.committed > c.committed {
			return KindCounts{}, damaged("counters of client %q", other)
		}
		c.views, c.active, c.committed = c.views-own.views, c.active-own.active, c.committed-own.committed
	}
	return KindCounts{Views: int(c.views), Active: int(c.active), Committed: int(c.committed)}, nil
}

// TrashCount returns the number of volumes in the trash, without reading them.
func (t *Tx) TrashCount() (int, error) {
	c, err := t.counters()
	return int(c.trash), err
}
