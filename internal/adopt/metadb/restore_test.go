package metadb

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

// TestRestore: the dump is the original, whether nothing or something was left out.
func TestRestore(t *testing.T) {
	d := makeDamaged(t)
	before := dump(t, d.path)
	for _, leave := range []LeaveOut{
		nil, d.leave, {"moby": d.leave["k8s.io"]}, {"k8s.io": d.leave["k8s.io"], "moby": d.leave["k8s.io"]},
	} {
		require.NoError(t, Restore(t.Context(), d.path, old, fresh), "nothing to restore")
		require.NoError(t, Rename(t.Context(), d.path, old, fresh, leave))
		require.NotEqual(t, before, dump(t, d.path))
		require.NoError(t, Restore(t.Context(), d.path, old, fresh))
		require.Equal(t, before, dump(t, d.path))
		require.NoError(t, Restore(t.Context(), d.path, old, fresh), "a second time")
		require.Equal(t, before, dump(t, d.path))
	}
}

// TestRestoreMeanwhile: the changes of containerd between Rename and Restore remain, and the rest
// is restored. gone, more and changed select lines of the dump by a text in them.
func TestRestoreMeanwhile(t *testing.T) {
	k8s := func(name string) string { return `"v1"/"k8s.io"/"snapshots"/"` + old + `"/"` + name + `"/` }
	for name, x := range map[string]struct {
		do         func(d *damaged, c *containerd)
		gone, more []string // texts
		changed    map[string]string
	}{
		"nothing": {do: func(*damaged, *containerd) {}},
		// The collector also removes them from their parent's children.
		"the collector removes snapshots that are left out": {
			do: func(_ *damaged, c *containerd) {
				require.NoError(t, metadata.NewLeaseManager(c.DB).Delete(c.in("k8s.io"), lease("pull")))
				require.NoError(t, metadata.NewLeaseManager(c.DB).Delete(c.in("k8s.io"), lease("left out")))
				c.collect()
			},
			gone: []string{
				k8s("alone"), k8s("view"), k8s("2") + `"children"/"alone"`, `"k8s.io"/"leases"/"pull"/`, `"k8s.io"/"leases"/"left out"/`,
			},
		},
		// The labels of c1 still protect the snapshot and the lease of the container c2.
		"a container of a snapshot that is left out is removed": {
			do: func(_ *damaged, c *containerd) {
				require.NoError(t, metadata.NewContainerStore(c.DB).Delete(c.in("k8s.io"), "c1"))
				c.collect()
			},
			gone: []string{`"k8s.io"/"containers"/"c1"/`},
		},
		"an image is pulled for overlayfs": {
			do: func(_ *damaged, c *containerd) {
				ctx := c.lease(c.in("k8s.io"), "other", "overlayfs")
				top := c.layers(ctx, "overlayfs", "1", "2", "3", "4", "5")
				c.image(ctx, "other", map[string]string{labelRef + "overlayfs": top}, nil)
				c.collect()
			},
			more: []string{
				`"k8s.io"/"snapshots"/"overlayfs"/`, `"k8s.io"/"leases"/"other"/`, `"k8s.io"/"images"/"other"/`, `"k8s.io"/"content"/`,
			},
		},
		// containerd creates the bucket and takes a number before it calls the snapshotter.
		"a pull with the new snapshotter fails": {
			do: func(d *damaged, c *containerd) {
				d.adopted.down = errdefs.ErrUnavailable
				for _, ns := range []string{"k8s.io", "new"} {
					ctx := c.lease(c.in(ns), "failed", fresh)
					_, err := c.Snapshotter(fresh).Prepare(ctx, "extract 7", "")
					require.ErrorIs(t, err, errdefs.ErrUnavailable)
				}
				d.adopted.down = nil
			},
			more:    []string{`"k8s.io"/"leases"/"failed"/`, `"v1"/"new"/`},
			changed: map[string]string{`"k8s.io"/"snapshots"/"devmapper"/ sequence 16`: `"k8s.io"/"snapshots"/"devmapper"/ sequence 17`},
		},
		"an image pulled with the new snapshotter is removed": {
			do: func(_ *damaged, c *containerd) {
				ctx := c.lease(c.in("k8s.io"), "pulled", fresh)
				c.image(ctx, "pulled", map[string]string{labelRef + fresh: c.layers(ctx, fresh, "3", "4")}, nil)
				require.NoError(t, metadata.NewImageStore(c.DB).Delete(c.in("k8s.io"), "pulled"))
				require.NoError(t, metadata.NewLeaseManager(c.DB).Delete(c.in("k8s.io"), lease("pulled")))
				c.collect()
			},
			changed: map[string]string{`"k8s.io"/"snapshots"/"devmapper"/ sequence 16`: `"k8s.io"/"snapshots"/"devmapper"/ sequence 20`},
		},
		// containerd's configuration has the old name, but the snapshotter does not load.
		"empty buckets of the old name": {
			do: func(_ *damaged, c *containerd) {
				require.NoError(t, c.Update(func(tx *bolt.Tx) error {
					bucket(tx, "v1", "k8s.io", keyLeases, "pull", keySnapshots, old)
					return bucket(tx, "v1", "moby", keySnapshots, old).SetSequence(99)
				}))
			},
			changed: map[string]string{`"moby"/"snapshots"/"devmapper"/ sequence 16`: `"moby"/"snapshots"/"devmapper"/ sequence 99`},
		},
		"an image that is left out has the label of both": {
			do: func(_ *damaged, c *containerd) {
				c.image(c.lease(c.in("k8s.io"), "again", fresh), "again", nil, nil)
				require.NoError(t, c.Update(func(tx *bolt.Tx) error {
					blobs := bucket(tx, "v1", "k8s.io", keyContent, keyBlob)
					for _, blob := range keys(blobs) {
						labels := within(blobs, blob, keyLabels)
						if labels == nil {
							continue
						}
						if value := labels.Get([]byte(labelRef + old)); value != nil {
							put(labels, labelRef+fresh, string(value))
						}
					}
					return nil
				}))
			},
			more: []string{`"k8s.io"/"leases"/"again"/`, `"k8s.io"/"images"/"again"/`, `"k8s.io"/"content"/`},
		},
		"the new snapshotter is a default": {
			do: func(_ *damaged, c *containerd) {
				c.namespaceLabel("moby", labelDefault, "overlayfs")
				c.prepare(c.in("new"), "overlayfs", "x", "", nil)
				c.namespaceLabel("new", labelDefault, fresh)
			},
			more:    []string{`"v1"/"new"/`},
			changed: map[string]string{`"moby"/"labels"/"` + labelDefault + `" = "devmapper"`: `"moby"/"labels"/"` + labelDefault + `" = "overlayfs"`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := makeDamaged(t)
			before := dump(t, d.path)
			c := d.rename(t)
			x.do(d, c)
			c.stop()
			require.NoError(t, Restore(t.Context(), d.path, old, fresh))
			names, err := Read(t.Context(), d.path, fresh)
			require.NoError(t, err)
			require.True(t, names.Empty())
			after := dump(t, d.path)

			without := func(lines, texts []string) []string {
				var rest []string
			next:
				for _, line := range lines {
					// The entries of the test's own garbage, which is in every snapshotter.
					for _, text := range append(texts, `"dirty"/`) {
						if strings.Contains(line, text) {
							continue next
						}
					}
					rest = append(rest, line)
				}
				slices.Sort(rest)
				return rest
			}
			for was, is := range x.changed {
				for i := range before {
					before[i] = strings.Replace(before[i], was, is, 1)
				}
			}
			require.Equal(t, without(before, append(x.gone, x.more...)), without(after, x.more))
			for _, text := range x.more {
				require.Contains(t, strings.Join(after, "\n"), text)
			}

			// The old snapshotter has all snapshots that were not removed, and its collector finds
			// them.
			c = start(t, d.dir, map[string]*backend{old: d.builtin, "overlayfs": newBackend()})
			c.collect()
			names, err = c.names(t)
			require.NoError(t, err)
			for _, p := range names.Problems {
				require.Contains(t, p.Text, "its child", "the collector removed only children")
			}
			for _, ns := range names.Namespaces {
				for _, s := range ns.Snapshots {
					require.Contains(t, d.builtin.info, s.Backend)
				}
			}
			c.stop()
		})
	}
}

// TestRestoreRefuses: a refused Restore does not change the file.
func TestRestoreRefuses(t *testing.T) {
	for name, x := range map[string]struct {
		do   func(tx *bolt.Tx)
		text string
	}{
		"a snapshot has both names": {
			func(tx *bolt.Tx) { put(bucket(tx, "v1", "k8s.io", keySnapshots, fresh, "5"), keyName, "k8s.io/17/5") },
			`"devmapper" also has a snapshot "5" in namespace "k8s.io": remove that of "thinsnap" ` +
				`(ctr -n k8s.io snapshots --snapshotter thinsnap rm 5)`,
		},
		"labels differ": {
			func(tx *bolt.Tx) {
				labels := bucket(tx, "v1", "k8s.io", keyImages, "broken", keyLabels)
				put(labels, labelCondition+"."+fresh, "usedat<2h|4")
			},
			`v1/k8s.io/images/broken/labels/"containerd.io/gc.cond.snapshot.thinsnap": its value "usedat<2h|4" differs from that of`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := makeDamaged(t)
			d.rename(t).stop()
			edit(t, d.path, func(tx *bolt.Tx) error { x.do(tx); return nil })
			before, err := os.ReadFile(d.path)
			require.NoError(t, err)
			err = Restore(t.Context(), d.path, old, fresh)
			require.ErrorIs(t, err, errdefs.ErrAlreadyExists)
			require.ErrorContains(t, err, x.text)
			after, err := os.ReadFile(d.path)
			require.NoError(t, err)
			require.Equal(t, before, after)
		})
	}
}
