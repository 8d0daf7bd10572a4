package main

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/admin"
)

// TestConnectionsAreLimited: connections beyond the limit wait until others end.
func TestConnectionsAreLimited(t *testing.T) {
	address := fakeDaemon(t)
	var open []net.Conn
	for range connections {
		conn, err := net.Dial("unix", address)
		require.NoError(t, err)
		open = append(open, conn)
	}
	answered := make(chan error, 1)
	go func() {
		_, err := admin.NewClient(address).Pool(t.Context())
		answered <- err
	}()
	select {
	case err := <-answered:
		require.Fail(t, "one connection more was served", "%v", err)
	case <-time.After(100 * time.Millisecond):
	}
	require.NoError(t, open[0].Close())
	require.NoError(t, <-answered)
	for _, conn := range open[1:] {
		require.NoError(t, conn.Close())
	}
}

// TestLongestKeyCanBeInspected: the limit of a request has room for it with all bytes escaped.
func TestLongestKeyCanBeInspected(t *testing.T) {
	address := fakeDaemon(t)
	_, err := admin.NewClient(address).Inspect(t.Context(), strings.Repeat("\xff", 32760))
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	_, err = admin.NewClient(address).Inspect(t.Context(), strings.Repeat("\xff", 128<<10))
	require.ErrorContains(t, err, "431")
}
