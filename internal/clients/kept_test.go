package clients_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/metadata"
)

// database is containerd's own database.
type database struct {
	bench *bench
	keys  []string
	last  map[string]int // last number given in a namespace
}

func newDatabase(b *bench) *database {
	d := &database{bench: b, last: make(map[string]int)}
	d.save()
	return d
}

// save makes the next containerd list the keys.
func (d *database) save() { d.bench.knows("one", d.keys...) }

func (d *database) prepare(t *testing.T, c *containerd, namespace string) string {
	t.Helper()
	d.last[namespace]++
	key := fmt.Sprintf("%s/%d/box", namespace, d.last[namespace])
	c.prepare(t, key, "")
	d.keys = append(d.keys, key)
	d.save()
	return key
}

// drop removes a namespace, and returns its keys.
func (d *database) drop(namespace string) []string {
	var gone, rest []string
	for _, key := range d.keys {
		if strings.HasPrefix(key, namespace+"/") {
			gone = append(gone, key)
		} else {
			rest = append(rest, key)
		}
	}
	d.keys, d.last[namespace] = rest, 0
	return gone
}

// commitLost commits a layer, but containerd is killed before its transaction ends.
func (d *database) commitLost(t *testing.T, c *containerd) (layer string) {
	t.Helper()
	unpack := d.prepare(t, c, "default")
	layer = fmt.Sprintf("default/%d/sha256:%d", d.last["default"]+1, d.last["default"])
	require.NoError(t, c.sn(t).Commit(t.Context(), layer, unpack))
	c.kill()
	d.keys = d.keys[:len(d.keys)-1]
	d.save()
	return layer
}

func requireKept(t *testing.T, b *bench, want int) {
	t.Helper()
	state, err := b.State(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, want, state.Kept)
	keeps, err := b.Keeps(t.Context())
	require.NoError(t, err)
	require.NoError(t, b.store.View(t.Context(), func(tx *metadata.Tx) error {
		all, _, err := tx.After("", metadata.Page{Records: 1000, Bytes: 1 << 20, Space: &b.space})
		require.Len(t, slices.DeleteFunc(all, func(s metadata.Snapshot) bool { return !keeps(s) }), want)
		return err
	}))
}

// containerd's lost transaction had the layer's number, so it is given again.
func TestKilledInCommit(t *testing.T) {
	b := newBench(t)
	d := newDatabase(b)
	c := b.containerd(t)
	for range 3 {
		d.prepare(t, c, "default")
		lost := d.commitLost(t, c)
		c = b.containerd(t)
		for range 5 {
			d.prepare(t, c, "default")
		}
		requireKept(t, b, 0)
		require.NoError(t, c.sn(t).Remove(t.Context(), lost))
	}
	c.kill()
	c = b.containerd(t)
	d.prepare(t, c, "default")
	for _, key := range d.keys {
		require.NoError(t, c.sn(t).Remove(t.Context(), key), "containerd knows it")
	}
}

// A namespace that is created again begins with number 1.
func TestNamespaceMadeAgain(t *testing.T) {
	for _, test := range []struct {
		name          string
		left          int  // snapshots not yet collected when the namespace is created again
		beforeRestart bool // the namespace is created again before the restart
		kept          int
	}{
		{"collected", 0, false, 0},
		{"not collected", 1, false, 0},
		{"collected, before a restart", 0, true, 0},
		{"not collected, before a restart", 1, true, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBench(t)
			d := newDatabase(b)
			c := b.containerd(t)
			for range 5 {
				d.prepare(t, c, "k8s.io")
				d.prepare(t, c, "ci")
			}
			restart := func() {
				c.kill()
				c = b.containerd(t)
				require.NoError(t, c.admit(t.Context()))
			}
			again := func(last string) {
				gone := d.drop("ci")
				for _, key := range gone {
					if key != last {
						require.NoError(t, c.sn(t).Remove(t.Context(), key))
					}
				}
				d.prepare(t, c, "ci")
			}
			last := ""
			if test.left > 0 {
				last = "ci/5/box"
			}
			if test.beforeRestart {
				again(last)
				restart()
			} else {
				restart()
				_, err := c.sn(t).Stat(t.Context(), "ci/5/box")
				require.NoError(t, err)
				again(last)
			}
			for range 3 {
				d.prepare(t, c, "ci")
				d.prepare(t, c, "k8s.io")
			}
			requireKept(t, b, test.kept)
			if last != "" && test.kept == 0 {
				require.NoError(t, c.sn(t).Remove(t.Context(), last))
			}
			restart()
			d.prepare(t, c, "k8s.io")
			again(last)
			restart()
			d.prepare(t, c, "k8s.io")
			for _, key := range d.keys {
				require.NoError(t, c.sn(t).Remove(t.Context(), key), "containerd knows it")
			}
			requireKept(t, b, test.kept)
		})
	}
}

// Each time only the snapshots that the copy lacks are kept.
func TestRestoredTwice(t *testing.T) {
	b := newBench(t)
	d := newDatabase(b)
	c := b.containerd(t)
	var lost []string
	for range 2 {
		for range 5 {
			d.prepare(t, c, "default")
		}
		d.prepare(t, c, "other")
		lost = append(lost, d.keys[len(d.keys)-2:]...)
		c.kill()
		d.keys = d.keys[:len(d.keys)-2]
		d.last["default"]--
		d.last["other"]--
		d.save()
		c = b.containerd(t)
		// The number was given before, but with another name, so the key is free.
		d.last["default"]++
		again := fmt.Sprintf("default/%d/again", d.last["default"])
		c.prepare(t, again, "")
		d.keys = append(d.keys, again)
		d.last["other"]++
		d.save()
		requireKept(t, b, len(lost))
	}
	for range 2 { // without a loss of data
		c.kill()
		c = b.containerd(t)
		d.prepare(t, c, "default")
		requireKept(t, b, len(lost))
	}
	for _, key := range lost {
		requireRefused(t, c.sn(t).Remove(t.Context(), key), "is kept")
	}
	for _, key := range d.keys {
		require.NoError(t, c.sn(t).Remove(t.Context(), key), "containerd knows it")
	}
	require.NoError(t, b.Accept(t.Context()))
	for _, key := range lost {
		require.NoError(t, c.sn(t).Remove(t.Context(), key))
	}
}

// A snapshot that containerd names by its whole key is not kept, even if it names it late.
func TestKnownIsNotKept(t *testing.T) {
	b := newBench(t)
	c := b.containerd(t)
	b.knows("one")
	for _, key := range []string{"default/1/known", "default/2/lost", "other/7/known"} {
		c.prepare(t, key, "")
	}
	require.Eventually(t, func() bool {
		state, err := b.State(t.Context())
		return err == nil && state.Installation == "one"
	}, time.Minute, time.Millisecond)
	c.kill()
	b.knows("two", "default/1/known")
	c = b.containerd(t)
	c.prepare(t, "default/9/box", "")
	require.NoError(t, c.sn(t).Remove(t.Context(), "default/1/known"))
	requireRefused(t, c.sn(t).Remove(t.Context(), "other/7/known"), "is kept")
	_, err := c.sn(t).Stat(t.Context(), "other/7/known")
	require.NoError(t, err)
	requireKept(t, b, 1)
	b.restart()
	require.NoError(t, c.sn(t).Remove(t.Context(), "other/7/known"))
	requireRefused(t, c.sn(t).Remove(t.Context(), "default/2/lost"), "is kept")
}

// Calls of a restored containerd may overtake each other.
func TestGivenOutOfOrder(t *testing.T) {
	b := newBench(t)
	c := b.containerd(t)
	for _, key := range []string{"default/1/box", "default/2/lost", "default/3/lost", "other/1/lost"} {
		c.prepare(t, key, "")
	}
	c.kill()
	b.knows("one", "default/1/box")
	c = b.containerd(t)
	for _, key := range []string{"default/4/box", "default/3/box", "other/2/box", "default/2/box"} {
		c.prepare(t, key, "")
	}
	for _, key := range []string{"default/2/lost", "default/3/lost", "other/1/lost"} {
		requireRefused(t, c.sn(t).Remove(t.Context(), key), "is kept")
	}
	require.NoError(t, c.sn(t).Remove(t.Context(), "default/1/box"))
}
