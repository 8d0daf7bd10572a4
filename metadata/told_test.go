package metadata

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

func client(t *testing.T, s *Store, space string) (c ClientRecord) {
	t.Helper()
	require.NoError(t, s.View(context.Background(), func(tx *Tx) (err error) {
		c, err = tx.Client(space)
		return err
	}))
	return c
}

// TestToldBySeveralClients compares the record with the installation of each client.
func TestToldBySeveralClients(t *testing.T) {
	s := newStore(t, Options{})
	for range 20 {
		c, model := ClientRecord{}, map[uint64]string{}
		for range 60 {
			c.Number++
			for rand.IntN(3) > 0 {
				model[c.Number] = fmt.Sprint(rand.IntN(2))
				c = c.WithInstallation(model[c.Number])
				require.Equal(t, model[c.Number], c.Installation)
			}
			if rand.IntN(20) == 0 {
				c.AcceptedBefore = c.Number
			}
			update(t, s, func(tx *Tx) { require.NoError(t, tx.SetClient("", c)) })
			c = client(t, s, "")
			for n := max(1, c.AcceptedBefore); n <= c.Number+1; n++ {
				told, ok := c.InstallationOf(n)
				require.Equal(t, model[n], told)
				require.Equal(t, model[n] != "", ok)
			}
		}
	}
}

// TestToldIsBounded: the record forgets the oldest clients, which then count as clients without an installation.
func TestToldIsBounded(t *testing.T) {
	var c ClientRecord
	for n := range 2 * maxTold {
		c.Number = uint64(2*n + 1)
		c = c.WithInstallation("one")
	}
	require.Len(t, c.Told, maxTold)
	_, ok := c.InstallationOf(1)
	require.False(t, ok)
	_, ok = c.InstallationOf(c.Number)
	require.True(t, ok)
	for range 1000 {
		c.Number++
		c = c.WithInstallation("one")
	}
	require.Len(t, c.Told, maxTold, "consecutive clients told different ones")
}

// An older thinsnap stores clients without their Told. An earlier Told does not count for them, also after that
// thinsnap has dropped the key space and created it again.
func TestToldOfAnotherRecord(t *testing.T) {
	s := newStore(t, Options{})
	const space = "k3s"
	older := func(c ClientRecord) {
		update(t, s, func(tx *Tx) { require.NoError(t, tx.put(tx.buckets.meta, keyClientOf(space), encodeClient(c))) })
	}
	told := ClientRecord{Number: 1, PID: 7, Since: noon}.WithInstallation("one")
	update(t, s, func(tx *Tx) { require.NoError(t, tx.SetClient(space, told)) })
	require.Equal(t, told, client(t, s, space))
	older(ClientRecord{Number: 1, PID: 7, Since: noon, Installation: "one", Proxy: "thinsnap"})
	require.Equal(t, told.Told, client(t, s, space).Told, "the same client")
	for _, next := range []ClientRecord{
		{Number: 2, PID: 8, Since: noon.Add(1), Installation: "one"}, {Number: 1, PID: 7, Since: noon.Add(1)}, {Number: 1},
	} {
		older(next)
		require.Equal(t, next, client(t, s, space))
	}
	update(t, s, func(tx *Tx) { require.NoError(t, tx.SetClient(space, ClientRecord{Number: 3, Since: noon})) })
	require.NotContains(t, contents(t, s), `meta "told k3s"`)

	update(t, s, func(tx *Tx) { require.NoError(t, tx.SetClient(space, told)) })
	update(t, s, func(tx *Tx) { require.NoError(t, tx.DropKeySpace(space)) })
	require.NotContains(t, contents(t, s), `meta "told k3s"`)
}

// A damaged list of installations is not taken for an empty one.
func TestToldIsDamaged(t *testing.T) {
	s := newStore(t, Options{})
	c := ClientRecord{Number: 5, Since: noon}
	for _, told := range [][]Told{
		{{"", 1, 1}}, {{"one", 0, 1}}, {{"one", 2, 1}}, {{"one", 1, 2}, {"two", 2, 3}}, {{"one", 1, 6}},
	} {
		c.Told = told
		update(t, s, func(tx *Tx) { require.NoError(t, tx.SetClient("", c)) })
		problems, err := s.Check(t.Context())
		require.NoError(t, err)
		require.Len(t, problems, 1, told)
		require.Equal(t, "client", problems[0].Subject)
		require.ErrorIs(t, s.View(t.Context(), func(tx *Tx) error {
			_, err := tx.Client("")
			return err
		}), errdefs.ErrDataLoss)
	}
	c.Told = nil
	update(t, s, func(tx *Tx) { require.NoError(t, tx.SetClient("", c)) })
}
