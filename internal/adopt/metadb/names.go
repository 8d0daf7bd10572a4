package metadb

import "time"

// Names has everything in a meta.db that names one snapshotter. Strings are the bytes of the
// database. containerd makes only UTF-8 names, and JSON would not keep others.
type Names struct {
	Snapshotter string
	Version     int64       // of the database: 3 or 4
	Namespaces  []Namespace // those that name the snapshotter, sorted by name
	Problems    []Problem   // problems of those, in the order of Namespaces

	// Digest is a SHA-256, in hexadecimal, of the whole database without the snapshotter's name in
	// the places that have it. So it changes if anything but the name changes. It does not include
	// sequences, children and defaults in Namespaces, nor empty buckets.
	Digest string
}

// A Namespace has the parts of a containerd namespace that name the snapshotter.
type Namespace struct {
	Name string

	// Bucket is true if the namespace has a bucket for the snapshotter's snapshots. It may be
	// empty: containerd does not remove it with the last snapshot.
	Bucket bool

	// Sequence is the last number used in a name in the snapshotter, or 0.
	Sequence uint64

	Snapshots  []Snapshot  // sorted by Key
	Containers []Container // sorted by ID
	Leases     []Lease     // sorted by ID
	Labels     []Label     // sorted by Object, then by Key
	Default    bool        // the snapshotter is the default of the namespace, by its label
}

// A Snapshot is containerd's record of a snapshot. Backend is its name in the snapshotter.
type Snapshot struct {
	Key      string
	Backend  string            // mostly NAMESPACE/NUMBER/KEY
	Parent   string            // the parent's Key, or ""
	Children []string          // the children's Keys, sorted, or nil
	Labels   map[string]string // nil without labels
	Created  time.Time         // UTC; zero if the record has none
	Updated  time.Time         // UTC; zero if the record has none
}

// A Container is a container whose root file system is a snapshot of the snapshotter.
type Container struct {
	ID          string
	SnapshotKey string // the Key of its snapshot; may be ""
}

// A Lease is a lease with snapshots of the snapshotter.
type Lease struct {
	ID        string
	Snapshots []string // Keys, sorted, also of snapshots that no longer exist
}

// A Label is a label by which an object protects a snapshot from the garbage collector, or a
// snapshot protects the object.
type Label struct {
	Object string // images/NAME, content/blob/DIGEST, containers/ID, snapshots/SNAPSHOTTER/KEY or sandboxes/ID
	Key    string // the whole key, with the snapshotter's name
	Value  string // mostly the Key of the snapshot, which may not exist
}

// A Problem is a record that contradicts another one, or that containerd cannot use.
type Problem struct {
	Subject string // `snapshot "sha256:..." in namespace "default"`
	Text    string // the contradiction or the reason
}

func (p Problem) String() string { return p.Subject + ": " + p.Text }

// Empty returns true if nothing in the database names the snapshotter.
func (n Names) Empty() bool { return len(n.Namespaces) == 0 }

// Vacant returns true if Rename can give the name to another snapshotter: only empty buckets, which
// containerd does not remove, and defaults of namespaces have it.
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
