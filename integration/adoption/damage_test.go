package adoption

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/internal/adopt/builtin"
)

// Damaged snapshots in the namespace "broken". All but the layers and the View are active.
const (
	baseLayer = "base" // undamaged, and the parent of the rest

	suspendedKey = "suspended" // containerd was killed during the Commit: Faulty, and its mapped device is suspended
	stateKey     = "state"     // likewise, but containerd did not start again: Suspending

	noVolumeKey = "no volume" // its volume was deleted from the pool
	lostLayer   = "lost"      // the volume of this layer was deleted, too
	ofLostKey   = "of lost"   // undamaged itself, but a child of that layer
	noRecordKey = "no record" // the pool's database lacks its device
	noKeyKey    = "no key"    // the built-in's metadata.db lacks it; containerd and the pool's database have it
	rootViewKey = "root view" // a View without a parent

	lostContainer = "lost-container" // a container of ctr, whose volume was deleted

	removedKey, removingKey = "removed", "removing" // removed asynchronously, but containerd was killed before it deleted the volume

	halfKey   = "half"   // containerd was killed while it created the volume, which the next snapshot does not use
	wedgedKey = "wedged" // containerd was killed while it made the file system: containerd issue 5646
)

// foreignID is the thin id of a volume that is in no database.
const foreignID = 4242

// damage makes each kind of damage, and leaves containerd stopped. A small node has only the kinds that need few
// restarts.
func (n *node) damage(t *testing.T) {
	t.Helper()
	dm := harness.DevmapperName
	n.createLease(t, brokenNS)
	n.layer(t, brokenNS, baseLayer, "")
	n.layer(t, brokenNS, lostLayer, baseLayer)
	n.prepare(t, brokenNS, ofLostKey, lostLayer)
	if !n.small {
		n.Ctr(t, "-n", brokenNS, "images", "pull", "--plain-http", "--snapshotter", dm, n.images.Busybox)
		n.Ctr(t, "-n", brokenNS, "run", "--snapshotter", dm, n.images.Busybox, lostContainer, "true")
	}
	for _, key := range []string{noVolumeKey, noRecordKey, noKeyKey, stateKey} {
		n.prepare(t, brokenNS, key, baseLayer)
	}
	n.must(t, brokenNS, dm, func(c client) error {
		_, err := c.View(c.held(), rootViewKey, "")
		return err
	})
	if !n.small {
		n.prepareToRemove(t)
		n.prepare(t, brokenNS, suspendedKey, baseLayer)
		n.killAt(t, "dmsetup", "resume*", false, func() { _ = n.commit(t, suspendedKey) })
		n.start(t)
		// This snapshot's record is not stored, so the next one gets the same id, but another thin id.
		n.killAt(t, "dmsetup", "message*create_snap*", true, func() { _ = n.tryPrepare(t, halfKey, baseLayer) })
		n.start(t)
	}
	n.killAt(t, "mkfs."+n.filesystem, "*", false, func() { _ = n.tryPrepare(t, wedgedKey, "") })
	n.start(t)
	require.ErrorContains(t, n.tryPrepare(t, "anything", baseLayer), "is already there")
	if !n.small {
		n.leaveRemoved(t)
		// nerdctl leaves the task of an ended container, with the mount, until containerd 2.x starts again.
		n.Nerdctl(t, dm, "start", "--attach", stopped)
	}
	n.killAt(t, "dmsetup", "suspend*", false, func() { _ = n.commit(t, stateKey) })

	n.loseVolume(t, noVolumeKey)
	if !n.small {
		n.loseVolume(t, lostContainer)
	}
	n.loseVolume(t, lostLayer)
	command(t, "dmsetup", "message", n.pool.Name(), "0", fmt.Sprintf("create_thin %d", foreignID))
	device := n.device(t, noRecordKey).Name
	edit(t, n.poolDatabase(), func(tx *bolt.Tx) error { return tx.Bucket([]byte("devices")).Delete([]byte(device)) })
	n.loseKey(t, noKeyKey)
	n.findForeign(t)
}

// undamaged returns the active snapshots in state Suspending or Faulty that have all content.
func (n *node) undamaged() []string {
	if n.small {
		return []string{stateKey}
	}
	return []string{stateKey, suspendedKey}
}

// requireFates: thinsnap recognizes the damage, and adopts all undamaged snapshots.
func (n *node) requireFates(t *testing.T, r report) {
	t.Helper()
	want := map[string]string{
		baseLayer: "adopted", noVolumeKey: "left-out", lostLayer: "left-out", ofLostKey: "left-out", noRecordKey: "left-out", noKeyKey: "left-out",
		rootViewKey: "left-out",
	}
	for _, key := range n.undamaged() {
		want[key] = "adopted"
	}
	if !n.small {
		want[lostContainer] = "left-out"
	}
	devices := make(map[string]int)
	for _, s := range r.Snapshots {
		switch {
		case s.Namespace == brokenNS && !strings.HasPrefix(s.Name, "sha256:"):
			require.Equal(t, want[s.Name], s.Becomes, s.Name)
			delete(want, s.Name)
		case s.Namespace == "":
			devices[s.Becomes]++
			if s.Becomes == "foreign" {
				n.foreign = append(n.foreign, s.DeviceID)
			}
		case s.Name == viewKey:
			require.Equal(t, "adopted-view", s.Becomes)
		default:
			require.Equal(t, "adopted", s.Becomes, s.Name)
		}
		require.Equal(t, s.Problem == "", s.Remedy == "", s.Name)
	}
	require.Empty(t, want)
	kept := map[string]int{"kept": 2} // of noKeyKey and wedgedKey
	if !n.small {
		kept["kept"] += 2 // of removedKey and removingKey
	}
	if !n.small && !n.Devmapper.NoDiscard {
		// The volume of removingKey is empty: nothing proves that it belongs to the record.
		kept["kept"]--
		kept["foreign"]++
	}
	require.Equal(t, kept, devices)
	require.Len(t, n.foreign, r.Foreign+devices["foreign"])
}

// findForeign finds the volumes without a record, which thinsnap leaves alone.
func (n *node) findForeign(t *testing.T) {
	t.Helper()
	dbs, err := builtin.Read(t.Context(), n.Devmapper.Root, n.pool.Name())
	require.NoError(t, err)
	n.foreign = []uint32{foreignID}
	for id, state := range dbs.IDs {
		if state != builtin.Free && !slices.ContainsFunc(dbs.Devices, func(d builtin.Device) bool { return d.ID == id }) {
			n.foreign = append(n.foreign, id)
		}
	}
}

func (n *node) deleteForeign(t *testing.T) {
	t.Helper()
	n.pool.deactivateVolumes(t)
	for _, id := range n.foreign {
		command(t, "dmsetup", "message", n.pool.Name(), "0", fmt.Sprintf("delete %d", id))
	}
}

// tryPrepare has the built-in make a snapshot in the namespace "broken".
func (n *node) tryPrepare(t *testing.T, key, parent string) error {
	t.Helper()
	return n.call(t, brokenNS, harness.DevmapperName, func(c client) error {
		_, err := c.Prepare(c.held(), key, parent)
		return err
	})
}

// commit has the built-in commit a snapshot in the namespace "broken".
func (n *node) commit(t *testing.T, key string) error {
	t.Helper()
	return n.call(t, brokenNS, harness.DevmapperName, func(c client) error {
		return c.Commit(c.held(), key+" layer", key)
	})
}

// removedLease is a lease that holds the snapshots to be removed.
const removedLease = "to remove"

func (n *node) prepareToRemove(t *testing.T) {
	t.Helper()
	n.must(t, brokenNS, harness.DevmapperName, func(c client) error {
		if err := c.createLease(removedLease); err != nil {
			return err
		}
		for _, key := range []string{removedKey, removingKey} {
			if _, err := c.Prepare(leases.WithLease(c, removedLease), key, baseLayer); err != nil {
				return err
			}
		}
		return nil
	})
}

// leaveRemoved removes two snapshots, and kills containerd when it deletes the first volume. Any later garbage
// collection of the built-in's snapshots would delete the second.
func (n *node) leaveRemoved(t *testing.T) {
	t.Helper()
	n.killAt(t, "dmsetup", "message*delete*", false, func() {
		_ = n.call(t, brokenNS, harness.DevmapperName, func(c client) error { return c.deleteLease(removedLease) })
	})
	n.start(t)
}

func (n *node) metadataDatabase() string { return filepath.Join(n.Devmapper.Root, "metadata.db") }
func (n *node) poolDatabase() string {
	return filepath.Join(n.Devmapper.Root, n.pool.Name()+".db")
}

// edit changes a closed database of the built-in.
func edit(t *testing.T, path string, f func(tx *bolt.Tx) error) {
	t.Helper()
	db, err := bolt.Open(path, 0, nil)
	require.NoError(t, err)
	require.NoError(t, db.Update(f))
	require.NoError(t, db.Close())
}

// snapshotsOf returns the bucket of the built-in's snapshots.
func snapshotsOf(tx *bolt.Tx) *bolt.Bucket {
	return tx.Bucket([]byte("v1")).Bucket([]byte("snapshots"))
}

// keyOf finds the built-in's key of a snapshot in the namespace "broken".
func keyOf(tx *bolt.Tx, name string) (key []byte, bucket *bolt.Bucket, err error) {
	err = snapshotsOf(tx).ForEachBucket(func(k []byte) error {
		var number int
		if _, err := fmt.Sscanf(string(k), brokenNS+"/%d/", &number); err == nil &&
			string(k) == fmt.Sprintf("%s/%d/%s", brokenNS, number, name) {
			key, bucket = k, snapshotsOf(tx).Bucket(k)
		}
		return nil
	})
	if err == nil && key == nil {
		err = fmt.Errorf("no key of %q: %w", name, errdefs.ErrNotFound)
	}
	return key, bucket, err
}

// device is a record of the pool's database.
type device struct {
	ID   uint32 `json:"device_id"`
	Name string `json:"name"`
}

// device finds the record of a snapshot in the namespace "broken".
func (n *node) device(t *testing.T, name string) (d device) {
	t.Helper()
	edit(t, n.metadataDatabase(), func(tx *bolt.Tx) error {
		_, bucket, err := keyOf(tx, name)
		if err != nil {
			return err
		}
		id, _ := binary.Uvarint(bucket.Get([]byte("id")))
		d.Name = fmt.Sprintf("%s-snap-%d", n.pool.Name(), id)
		return nil
	})
	edit(t, n.poolDatabase(), func(tx *bolt.Tx) error {
		return json.Unmarshal(tx.Bucket([]byte("devices")).Get([]byte(d.Name)), &d)
	})
	return d
}

// loseVolume deletes the volume of a snapshot in the namespace "broken".
func (n *node) loseVolume(t *testing.T, name string) {
	t.Helper()
	d := n.device(t, name)
	if slices.Contains(n.pool.active(t), d.Name) {
		command(t, "dmsetup", "remove", "--retry", d.Name)
	}
	command(t, "dmsetup", "message", n.pool.Name(), "0", fmt.Sprintf("delete %d", d.ID))
}

// loseKey removes a snapshot in the namespace "broken" from the built-in's metadata.db alone.
func (n *node) loseKey(t *testing.T, name string) {
	t.Helper()
	edit(t, n.metadataDatabase(), func(tx *bolt.Tx) error {
		key, _, err := keyOf(tx, name)
		if err != nil {
			return err
		}
		parents := tx.Bucket([]byte("v1")).Bucket([]byte("parents"))
		cursor := parents.Cursor()
		for k, v := cursor.First(); k != nil; k, v = cursor.Next() {
			if string(v) == string(key) {
				if err := cursor.Delete(); err != nil {
					return err
				}
			}
		}
		return snapshotsOf(tx).DeleteBucket(key)
	})
}
