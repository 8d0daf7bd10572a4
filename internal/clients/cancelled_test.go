package clients_test

import (
	"context"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/clients"
	"github.com/thinsnap/thinsnap/metadata"
)

// cancelledWhen is a context that ends when a condition holds.
type cancelledWhen struct {
	context.Context
	holds func() bool
}

func (c cancelledWhen) Err() error {
	if c.holds() {
		return context.Canceled
	}
	return nil
}

func (b *bench) client(t *testing.T) (client metadata.ClientRecord) {
	t.Helper()
	require.NoError(t, b.store.View(context.Background(), func(tx *metadata.Tx) (err error) {
		client, err = tx.Client(b.space)
		return err
	}))
	return client
}

// The first call is cancelled while the record has another containerd: the new one is not taken for
// the recorded one.
func TestFirstCallIsCancelled(t *testing.T) {
	b := newBench(t)
	keys := []string{"default/1/box", "default/2/box", "default/3/box"}
	b.made(t, keys...)
	before := b.client(t).Number
	b.knows("two")
	other := b.containerd(t)
	_ = other.admit(cancelledWhen{t.Context(), func() bool { return b.client(t).Number > before }})
	require.Equal(t, before+1, b.client(t).Number)
	sn := other.sn(t)
	for _, key := range keys {
		requireRefused(t, sn.Remove(t.Context(), key))
	}
	require.Equal(t, before+1, b.client(t).Number)
}

// The first calls after a start of thinsnap are cancelled.
func TestCancelledCallsLeaveNoHandle(t *testing.T) {
	b := newBench(t)
	c := b.containerd(t)
	c.prepare(t, "default/1/box", "")
	open := func() int {
		all, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return len(all)
	}
	r := clients.New(b.store, b.space)
	defer r.Close()
	before := open()
	for range 20 {
		looks := 0
		_ = r.Admit(cancelledWhen{t.Context(), func() bool { looks++; return looks > 1 }},
			clients.Call{Process: clients.FindProcess(c.cmd.Process.Pid), Proxy: "thinsnap"})
	}
	require.LessOrEqual(t, open(), before+10)
}
