package devmapper_test

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestKernelEvents(t *testing.T) {
	c := open(t)
	events, err := c.Events()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, events.Close()) })
	wait := func(limit time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		return events.Wait(ctx)
	}
	require.ErrorIs(t, wait(50*time.Millisecond), context.DeadlineExceeded, "nothing has happened")

	// An event before the wait ends it.
	_, err = c.Activate("dmevent", "", zeroes(16), false)
	require.NoError(t, err)
	require.NoError(t, wait(eventually))
	require.ErrorIs(t, wait(50*time.Millisecond), context.DeadlineExceeded, "reported once")

	// An event during the wait ends it.
	woken := make(chan error, 1)
	go func() { woken <- wait(eventually) }()
	time.Sleep(20 * time.Millisecond)
	require.NoError(t, c.Deactivate("dmevent"))
	require.NoError(t, <-woken)

	require.Equal(t, uint64(2), c.CallsByCommand()["arm poll"])

	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, events.Wait(cancelled), context.Canceled)
}

func TestKernelEventsClose(t *testing.T) {
	c := open(t)
	events, err := c.Events()
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() { ended <- events.Wait(t.Context()) }()
	time.Sleep(20 * time.Millisecond)
	require.NoError(t, events.Close())
	select {
	case err := <-ended:
		require.ErrorIs(t, err, os.ErrClosed)
	case <-time.After(eventually):
		t.Fatal("a wait survived the close")
	}
}
