package metadata

// Told is a range of clients of one key space that told the same installation: the UUID of a containerd, or the worker
// id of a BuildKit, which is kept with its data.
type Told struct {
	Installation string // not empty
	First, Last  uint64 // numbers of clients, from 1, both included
}

// maxTold is the maximum number of ranges in a client's record. A client that tells the same as the one before it adds
// no range.
const maxTold = 64

// InstallationOf returns the installation that the client with this number told, and false if Told has none for it.
func (c ClientRecord) InstallationOf(number uint64) (string, bool) {
	for _, t := range c.Told {
		if t.First <= number && number <= t.Last {
			return t.Installation, true
		}
	}
	return "", false
}

// WithInstallation returns the record after the client has told its installation, which must not be empty. It drops
// ranges that AcceptedBefore covers, and the oldest of more than 64.
func (c ClientRecord) WithInstallation(installation string) ClientRecord {
	if c.Installation != "" && c.Installation != installation && len(c.Told) == 0 && c.Number > 1 {
		// A thinsnap without Told took all clients to be of the installation that was told last.
		c.Told = []Told{{Installation: c.Installation, First: 1, Last: c.Number - 1}}
	}
	c.Installation = installation
	var all []Told
	for _, t := range c.Told {
		t.Last = min(t.Last, c.Number-1)
		if t.First <= t.Last && t.Last >= c.AcceptedBefore {
			all = append(all, t)
		}
	}
	if n := len(all); n > 0 && all[n-1].Installation == installation && all[n-1].Last == c.Number-1 {
		all[n-1].Last = c.Number
	} else {
		all = append(all, Told{Installation: installation, First: c.Number, Last: c.Number})
	}
	c.Told = all[max(0, len(all)-maxTold):]
	return c
}

var keyTold = []byte("told")

// setTold stores Told in an entry beside the client's record, whose format stays that of older thinsnaps. These do not
// change the entry when they store a client. So it has the number and time of its client, and is valid only while the
// client's record has the same.
func (t *Tx) setTold(space string, c ClientRecord) error {
	k := spaceKey(keyTold, space)
	if len(c.Told) == 0 {
		if t.buckets.meta.Get(k) == nil {
			return nil
		}
		return t.delete(t.buckets.meta, k)
	}
	e := newEncoder(128)
	e.uvarint(c.Number)
	e.time(c.Since)
	e.uvarint(uint64(len(c.Told)))
	for _, told := range c.Told {
		e.string(told.Installation)
		e.uvarint(told.First)
		e.uvarint(told.Last)
	}
	return t.put(t.buckets.meta, k, e.b)
}

// told returns the installations that the clients up to c told, or none if an older thinsnap stored c.
func (t *Tx) told(space string, c ClientRecord) ([]Told, error) {
	v := t.buckets.meta.Get(spaceKey(keyTold, space))
	if v == nil {
		return nil, nil
	}
	d := newDecoder(v)
	number, since := d.uvarint(), d.time()
	var all []Told
	for last, n := uint64(0), d.uvarint(); n > 0 && !d.failed; n-- {
		told := Told{Installation: d.string(), First: d.uvarint(), Last: d.uvarint()}
		if told.Installation == "" || told.First <= last || told.Last < told.First || told.Last > number {
			d.fail()
		}
		last = told.Last
		all = append(all, told)
	}
	if err := d.finish(); err != nil {
		return nil, damaged("installations of clients")
	}
	if number != c.Number || !since.Equal(c.Since) {
		return nil, nil
	}
	return all, nil
}
