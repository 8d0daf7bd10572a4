package metadb

import "time"

// Names is everything in a meta.db that names one snapshotter. Strings are the bytes of the
// database: containerd does not make names that are not UTF-8, and JSON would not keep them.
type Names struct {
	Snapshotter string
	Version     int64       // of the database: 3 or 4
	Namespaces  []Namespace // those that name the snapshotter, sorted by name
	Problems    []Problem   // what containerd would not accept in those, in the order of Namespaces

	// Digest is a SHA-256, in hexadecimal, of the whole database, in which the snapshotter's name is
	// left out at the places that name it. So it stays the same when the snapshotter is renamed and
	// nothing else changes. What Namespaces have of sequences, children and defaults is not in it, nor
	// are empty buckets.
	Digest string
}

// A Namespace is what one of containerd's namespaces has of the snapshotter.
type Namespace struct {
	Name string

	// Bucket says that the namespace has a bucket for the snapshots of the snapshotter. It may be
	// empty: containerd does not remove the bucket with the last snapshot.
	Bucket bool

	// Sequence is the last number that was used in a name in the snapshotter; 0 if there was none.
	Sequence uint64

	Snapshots  []Snapshot  // sorted by Key
	Containers []Container // sorted by ID
	Leases     []Lease     // sorted by ID
	Labels     []Label     // sorted by Object, then by Key
	Default    bool        // the snapshotter is the default of the namespace, by its label
}

// A Snapshot is containerd's record of a snapshot. That of the snapshotter is known as Backend.
type Snapshot struct {
	Key      string
	Backend  string            // the name in the snapshotter, mostly NAMESPACE/NUMBER/KEY
	Parent   string            // the Key of the parent; empty if it has none
	Children []string          // the Keys of the children, sorted; nil if it has none
	Labels   map[string]string // nil if it has none
	Created  time.Time         // in UTC; zero if the record has none
	Updated  time.Time         // in UTC; zero if the record has none
}

// A Container is a container whose root file system is a snapshot of the snapshotter.
type Container struct {
	ID          string
	SnapshotKey string // the Key of its snapshot; may be empty
}

// A Lease is a lease with snapshots of the snapshotter.
type Lease struct {
	ID        string
	Snapshots []string // Keys, sorted; may name snapshots that no longer exist
}

// A Label is a label by which an object keeps a snapshot from the garbage collector, or a snapshot
// keeps the object.
type Label struct {
	Object string // images/NAME, content/blob/DIGEST, containers/ID, snapshots/SNAPSHOTTER/KEY or sandboxes/ID
	Key    string // the whole key, with the name of the snapshotter
	Value  string // mostly the Key of the snapshot, which may no longer exist
}

// A Problem is a record that contradicts another, or that containerd cannot use.
type Problem struct {
	Subject string // `snapshot "sha256:..." in namespace "default"`
	Text    string // what is wrong with it
}

func (p Problem) String() string { return p.Subject + ": " + p.Text }

// Empty says that nothing in the database names the snapshotter.
func (n Names) Empty() bool { return len(n.Namespaces) == 0 }

// Vacant says that Rename can give a snapshotter this name: nothing has it but empty buckets, which
// containerd does not remove, and defaults of namespaces.
func (n Names) Vacant() bool {
	for _, ns := range n.Namespaces {
		if len(ns.Snapshots)+len(ns.Containers)+len(ns.Labels) > 0 {
			return false
		}
		for _, l := range ns.Leases {
			if len(l.Snapshots) > 0 {
				return false
			}
		}
	}
	return true
}
