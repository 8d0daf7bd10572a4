package clients_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/clients"
	"github.com/thinsnap/thinsnap/metadata"
)

// An older version has stored the clients, without the told installations. Each client keeps its snapshots, whichever
// of the two calls first.
func TestExchangedAddressesAfterAnOlderVersion(t *testing.T) {
	one := newBench(t)
	other := one.of(t, "k3s")
	one.waits(0)
	other.waits(0)
	one.knows("one")
	other.knows("two")
	ofOne, ofOther := one.containerd(t), other.containerd(t)
	for _, b := range []struct {
		b *bench
		c *containerd
	}{{one, ofOne}, {other, ofOther}} {
		require.NoError(t, b.c.admit(t.Context()))
		require.Eventually(t, func() bool { return clients.HasListed(b.b.Registry) }, time.Minute, time.Millisecond)
	}
	ofOne.images(t, "one")
	otherBox := ofOther.images(t, "other")
	ofOne.kill()
	ofOther.kill()
	for _, b := range []*bench{one, other} {
		old := b.client(t)
		require.NotEmpty(t, old.Installation)
		old.Told = nil
		require.NoError(t, b.store.Update(t.Context(), func(tx *metadata.Tx) error { return tx.SetClient(b.space, old) }))
		b.restart()
		b.waits(0)
	}
	come := func(b *bench, installation string) {
		b.knows(installation, layers...)
		c := b.containerd(t)
		require.NoError(t, c.admit(t.Context()))
		require.Eventually(t, func() bool { return clients.HasListed(b.Registry) }, time.Minute, time.Millisecond)
		c.removeAll(t, 100)
	}
	come(one, "two")
	come(other, "one")
	other.has(t, append(layers, otherBox)...)
}

// An accept lets the client of that time remove the snapshots, but not another installation later.
func TestOtherInstallationAfterAccept(t *testing.T) {
	b := newBench(t)
	b.waits(0)
	come := func(installation string, keys ...string) *containerd {
		b.knows(installation, keys...)
		c := b.containerd(t)
		require.NoError(t, c.admit(t.Context()))
		require.Eventually(t, func() bool { return clients.HasListed(b.Registry) }, time.Minute, time.Millisecond)
		return c
	}
	c := come("one")
	box := c.images(t, "one")
	c.kill()
	c = come("one", append(layers, box)...)
	require.NoError(t, b.Accept(t.Context()))
	b.has(t, append(layers, box)...)
	c.kill()
	come("two").removeAll(t, 100)
	b.has(t, append(layers, box)...)
}
