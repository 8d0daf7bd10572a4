package clients_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/clients"
	"github.com/thinsnap/thinsnap/metadata"
)

// of returns a bench for another key space of the same store.
func (b *bench) of(t *testing.T, space string) *bench {
	t.Helper()
	other := &bench{store: b.store, space: space, all: b.all, inner: b.all.In(space)}
	other.restart()
	t.Cleanup(func() { other.Close() })
	return other
}

// layers are those of two images, with the same keys for all clients.
var layers = []string{"default/2/sha256:1", "default/4/sha256:2"}

// images makes a client unpack two images, and create a snapshot on the first.
func (c *containerd) images(t *testing.T, own string) (box string) {
	t.Helper()
	for i, layer := range layers {
		c.layer(t, fmt.Sprintf("default/%d/%s", 1+2*i, own), layer, "")
	}
	box = "default/5/" + own
	c.prepare(t, box, layers[0])
	return box
}

// removeAll makes a client remove all snapshots that it finds, like the collector of an empty database, and create a
// snapshot with the highest number.
func (c *containerd) removeAll(t *testing.T, number int) {
	t.Helper()
	sn := c.sn(t)
	c.prepare(t, fmt.Sprintf("default/%d/newest", number), "")
	var keys []string
	require.NoError(t, sn.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
		keys = append(keys, info.Name)
		return nil
	}))
	for range keys {
		for _, key := range keys {
			_ = sn.Remove(t.Context(), key)
		}
	}
}

func (b *bench) has(t *testing.T, keys ...string) {
	t.Helper()
	for _, key := range keys {
		_, err := b.inner.Stat(t.Context(), key)
		require.NoError(t, err)
	}
}

// Two clients exchange key spaces, unpack the same image, and remove all snapshots that they find. Back at their own
// key spaces they find all their snapshots.
func TestExchangedAddresses(t *testing.T) {
	for _, test := range []struct {
		name       string
		one, other string // installations
	}{
		{"containerds", "one", "two"}, {"programs", "", ""}, {"program at a containerd's", "one", ""}, {"containerd at a program's", "", "two"},
	} {
		t.Run(test.name, func(t *testing.T) {
			one := newBench(t)
			other := one.of(t, "k3s")
			tell := func(b *bench, installation string, keys ...string) {
				b.waits(0)
				if installation == "" {
					b.askNone()
				} else {
					b.knows(installation, keys...)
				}
			}
			tell(one, test.one)
			tell(other, test.other)
			ofOne, ofOther := one.containerd(t), other.containerd(t)
			box, otherBox := ofOne.images(t, "one"), ofOther.images(t, "other")
			ofOne.kill()
			ofOther.kill()

			at := func(b *bench, installation, own string) {
				tell(b, installation, layers...)
				c := b.containerd(t)
				require.NoError(t, c.admit(t.Context()))
				if installation == "" {
					require.Eventually(t, func() bool { return clients.IsSilent(b.Registry) }, time.Minute, time.Millisecond)
				} else {
					require.Eventually(t, func() bool { return clients.HasListed(b.Registry) }, time.Minute, time.Millisecond)
				}
				for i, layer := range layers {
					_, err := c.sn(t).Stat(t.Context(), layer)
					require.NoError(t, err)
					unpacked := fmt.Sprintf("default/%d/%s", 6+i, own)
					c.prepare(t, unpacked, "")
					require.NoError(t, c.sn(t).Commit(t.Context(), layer, unpacked), "it is the same layer")
				}
				c.removeAll(t, 100)
				c.kill()
			}
			at(one, test.other, "other")
			at(other, test.one, "one")
			for range 2 {
				one.has(t, append(layers, box)...)
				other.has(t, append(layers, otherBox)...)
				one.restart()
				other.restart()
				at(one, test.other, "other")
			}

			tell(one, test.one, append(layers, box)...)
			c := one.containerd(t)
			require.NoError(t, c.admit(t.Context()))
			if test.one != "" {
				require.Eventually(t, func() bool { return clients.HasListed(one.Registry) }, time.Minute, time.Millisecond)
			} else {
				require.NoError(t, one.Accept(t.Context()))
			}
			for _, key := range append([]string{box}, layers...) {
				require.NoError(t, c.sn(t).Remove(t.Context(), key))
			}
			other.has(t, append(layers, otherBox)...)
		})
	}
}

// A snapshot of a process that ended before it told its installation may be of any program. The same containerd gets it
// back by its list; a snapshot that the list lacks is kept.
func TestKilledBeforeItTold(t *testing.T) {
	b := newBench(t)
	b.made(t, "default/1/box")
	b.waits(0)
	answer := b.answers()
	c := b.containerd(t)
	c.prepare(t, "default/2/listed", "")
	c.prepare(t, "default/3/lost", "")
	b.restart() // thinsnap is killed after it recorded the client
	b.waits(0)
	c.prepare(t, "default/4/lost", "")
	c.kill()
	b.knows("one", "default/2/listed")
	next := b.containerd(t)
	require.NoError(t, next.admit(t.Context()))
	require.Eventually(t, func() bool { return clients.HasListed(b.Registry) }, time.Minute, time.Millisecond)
	next.prepare(t, "default/50/box", "")
	for range 2 {
		requireKept(t, b, 2)
		for _, key := range []string{"default/3/lost", "default/4/lost"} {
			requireRefused(t, next.sn(t).Remove(t.Context(), key), "is kept", "nothing shows that process")
		}
		b.restart()
	}
	require.NoError(t, next.sn(t).Remove(t.Context(), "default/2/listed"))
	require.NoError(t, next.sn(t).Remove(t.Context(), "default/1/box"), "it told the same before")
	close(answer)
}

// thinsnap crashes after each change of the store that a new client causes. In no order does the client get another
// program's snapshots, and it gets its own after the next start.
func TestCrashBetweenRecords(t *testing.T) {
	b := newBench(t)
	b.made(t, "default/1/box")
	b.askNone()
	b.waits(0)
	program := b.containerd(t)
	program.prepare(t, "default/2/other", "")
	program.kill()
	b.knows("one")
	c := b.containerd(t)
	crash := errors.New("crash")
	for _, told := range []bool{false, true} {
		b.restart()
		tried := make(chan struct{})
		clients.SetIdentify(b.Registry, func(ctx context.Context, _ clients.Process, _ string, to clients.Report) error {
			to.Listens(true)
			if told {
				require.NoError(t, to.Told("one"))
			}
			close(tried)
			<-ctx.Done()
			return crash
		})
		b.waits(0)
		require.NoError(t, c.admit(t.Context()))
		<-tried
		_, err := c.sn(t).Prepare(t.Context(), fmt.Sprintf("default/%v/box", map[bool]int{false: 50, true: 51}[told]), "")
		require.NoError(t, err)
		requireRefused(t, c.sn(t).Remove(t.Context(), "default/2/other"), "is kept")
		if told {
			require.NoError(t, c.sn(t).Remove(t.Context(), "default/1/box"))
		} else {
			requireRefused(t, c.sn(t).Remove(t.Context(), "default/1/box"), "does not know yet")
		}
	}
	b.restart()
	for _, key := range []string{"default/50/box", "default/51/box"} {
		require.NoError(t, c.sn(t).Remove(t.Context(), key), "its own")
	}
	requireRefused(t, c.sn(t).Remove(t.Context(), "default/2/other"), "is kept")
}

// TestStoreOfAnOlderVersion: such a store does not record earlier clients. Their snapshots are kept, except those that the
// present client lists.
func TestStoreOfAnOlderVersion(t *testing.T) {
	b := newBench(t)
	b.made(t, "default/1/listed", "default/2/lost", "default/3/sha256:1")
	old := b.client(t)
	old.Told = nil
	require.NoError(t, b.store.Update(t.Context(), func(tx *metadata.Tx) error { return tx.SetClient(b.space, old) }))
	b.knows("one", "default/1/listed", "default/3/sha256:1")
	b.restart()
	c := b.containerd(t)
	require.NoError(t, c.admit(t.Context()))
	require.Eventually(t, func() bool { return clients.HasListed(b.Registry) }, time.Minute, time.Millisecond)
	c.prepare(t, "default/50/box", "")
	requireRefused(t, c.sn(t).Remove(t.Context(), "default/2/lost"), "is kept")
	requireKept(t, b, 1)
	require.NoError(t, c.sn(t).Remove(t.Context(), "default/1/listed"))
	require.NoError(t, c.sn(t).Remove(t.Context(), "default/3/sha256:1"))
	require.NoError(t, b.Accept(t.Context()))
	require.NoError(t, c.sn(t).Remove(t.Context(), "default/2/lost"))
}
