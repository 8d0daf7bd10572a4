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

// The next call reuses the connection, concurrent calls share one, and none is closed while it is used.
func TestConnectionsAreCached(t *testing.T) {
	server := grpc.NewServer()
	defer server.Stop()
	introspectionapi.RegisterIntrospectionServer(server, introspection{})
	listen(t, "containerd.sock", server.Serve)
	self := clients.FindProcess(os.Getpid())
	// The program's name does not distinguish processes.
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
	require.Same(t, second, again, "successive calls")
	release()
	require.NoError(t, c.Close())
	require.Equal(t, connectivity.Shutdown, second.GetState())
	require.NotEqual(t, connectivity.Shutdown, first.GetState(), "in use")
}
