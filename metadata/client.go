package metadata

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/containerd/errdefs"
)

var keyClient = []byte("client")

// A ClientRecord describes the client of a key space, and facts about the earlier ones.
type ClientRecord struct {
	// Number counts the clients of the key space, from 1. Snapshot.Client is such a number.
	Number uint64
	// Proxy is the snapshotter's name in the client's requests, that of containerd's proxy plugin. It is empty until a
	// request has one.
	Proxy string
	// PID, StartTime and BootID identify the process. StartTime is in clock ticks since boot. PID is 0 if the process
	// cannot be seen, or if there is no client.
	PID       int
	StartTime uint64
	BootID    string
	Program   string    // name of the process; its path, if known
	Since     time.Time // UTC; zero if there is no client
	// Installation is the UUID of a containerd, or worker id of a BuildKit, that a client told last. It is empty if none
	// told one.
	Installation string
	// Told lists the clients that told an installation, lowest number first.
	Told []Told
	// Protections has an entry for each client whose database lacked snapshots of earlier clients, in order of Before.
	// A snapshot protected by one of them is kept.
	Protections []Protection
	// AcceptedBefore ends all protection of the snapshots of clients with lower numbers.
	AcceptedBefore uint64
}

// A Protection protects the snapshots of clients with numbers below Before. Known has, for each of containerd's
// namespaces, the highest number of a key (NAMESPACE/NUMBER/NAME) that is not protected.
type Protection struct {
	Before uint64
	Known  map[string]uint64
}

// Client returns the record stored by SetClient for a key space, or NotFound.
func (t *Tx) Client(space string) (ClientRecord, error) {
	c, err := t.clientAlone(space)
	if err != nil {
		return ClientRecord{}, err
	}
	if c.Told, err = t.told(space, c); err != nil {
		return ClientRecord{}, err
	}
	return c, nil
}

// clientAlone returns the record without Told.
func (t *Tx) clientAlone(space string) (ClientRecord, error) {
	v := t.buckets.meta.Get(keyClientOf(space))
	if v == nil {
		return ClientRecord{}, fmt.Errorf("client of the metadata store: %w", errdefs.ErrNotFound)
	}
	return decodeClient(v)
}

// SetClient stores the client of a key space. Snapshots created there later record its number. The first client of a
// further key space raises the format: older thinsnaps then refuse the store.
func (t *Tx) SetClient(space string, c ClientRecord) error {
	if err := CheckKeySpace(space); err != nil {
		return err
	}
	if space != "" {
		if err := t.requireSchema(schemaVersion); err != nil {
			return err
		}
	}
	if err := t.setTold(space, c); err != nil {
		return err
	}
	return t.put(t.buckets.meta, keyClientOf(space), encodeClient(c))
}

// clientNumber returns the client's number for a new snapshot with this key: 0 before the first client.
func (t *Tx) clientNumber(key string) (uint64, error) {
	space, _ := SplitKey(key)
	c, err := t.clientAlone(space)
	if errdefs.IsNotFound(err) {
		return 0, nil
	}
	return c.Number, err
}

// TakeOver makes the current client of its key space the recorded creator of a snapshot.
func (t *Tx) TakeOver(key string) error {
	s, err := t.Get(key)
	if err != nil {
		return err
	}
	if s.Client, err = t.clientNumber(key); err != nil {
		return err
	}
	return t.put(t.buckets.snapshots, []byte(key), encodeSnapshot(s))
}

// encodeClient leaves out Told, which setTold stores.
func encodeClient(c ClientRecord) []byte {
	e := newEncoder(256)
	e.uvarint(c.Number)
	e.string(c.Proxy)
	e.uvarint(uint64(c.PID))
	e.uvarint(c.StartTime)
	e.string(c.BootID)
	e.string(c.Program)
	e.time(c.Since)
	e.string(c.Installation)
	e.uvarint(c.AcceptedBefore)
	e.uvarint(uint64(len(c.Protections)))
	for _, k := range c.Protections {
		e.uvarint(k.Before)
		e.uvarint(uint64(len(k.Known)))
		for _, namespace := range slices.Sorted(maps.Keys(k.Known)) {
			e.string(namespace)
			e.uvarint(k.Known[namespace])
		}
	}
	return e.b
}

func decodeClient(b []byte) (ClientRecord, error) {
	d := newDecoder(b)
	var c ClientRecord
	c.Number = d.uvarint()
	c.Proxy = d.string()
	c.PID = int(d.max(1 << 31))
	c.StartTime = d.uvarint()
	c.BootID = d.string()
	c.Program = d.string()
	c.Since = d.time()
	c.Installation = d.string()
	c.AcceptedBefore = d.uvarint()
	var before uint64
	for range d.uvarint() {
		k := Protection{Before: d.uvarint(), Known: decodeKnown(d)}
		if d.failed || k.Before <= before {
			d.fail()
			break
		}
		before = k.Before
		c.Protections = append(c.Protections, k)
	}
	if err := d.finish(); err != nil {
		return ClientRecord{}, damaged("client record")
	}
	return c, nil
}

func decodeKnown(d *decoder) map[string]uint64 {
	var known map[string]uint64
	last := ""
	for i := range d.uvarint() {
		namespace, number := d.string(), d.uvarint()
		if d.failed || (i > 0 && namespace <= last) {
			d.fail()
			break
		}
		if known == nil {
			known = make(map[string]uint64)
		}
		known[namespace], last = number, namespace
	}
	return known
}
