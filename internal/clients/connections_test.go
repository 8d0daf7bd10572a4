package clients_test

import (
	"os"
	"testing"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	"github.com/thinsnap/thinsnap/internal/clients"
)

// TestConnectionsAreKept: the next call has the connection of the one before, calls at once have the same, and none is
// closed while it is in use.
func TestConnectionsAreKept(t *testing.T) {
	server := grpc.NewServer()
	defer server.Stop()
	introspectionapi.RegisterIntrospectionServer(server, introspection{})
	listen(t, "containerd.sock", server.Serve)
	self := clients.Find(os.Getpid())
	// The name of the program is not what tells processes apart.
	other := self
	other.Program = "another"

	var c clients.Connections
	first, release, err := c.Dial(t.Context(), self)
	require.NoError(t, err)
	release()
	for range 4 {
		conn, release, err := c.Dial(t.Context(), self)
		require.NoError(t, err)
		require.Same(t, first, conn)
		defer release()
	}
	second, releaseOther, err := c.Dial(t.Context(), other)
	require.NoError(t, err)
	require.NotSame(t, first, second)
	require.NotEqual(t, connectivity.Shutdown, first.GetState(), "in use")
	releaseOther()
	again, release, err := c.Dial(t.Context(), other)
	require.NoError(t, err)
	require.Same(t, second, again, "two that call in turn")
	release()
	require.NoError(t, c.Close())
	require.Equal(t, connectivity.Shutdown, second.GetState())
	require.NotEqual(t, connectivity.Shutdown, first.GetState(), "in use")
}
