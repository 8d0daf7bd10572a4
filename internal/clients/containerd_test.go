package clients_test

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/thinsnap/thinsnap/internal/clients"
)

// introspection serves the UUID of a containerd.
type introspection struct {
	introspectionapi.UnimplementedIntrospectionServer
}

func (introspection) Server(context.Context, *emptypb.Empty) (*introspectionapi.ServerResponse, error) {
	return &introspectionapi.ServerResponse{UUID: "one"}, nil
}

// noNamespaces serves a containerd without namespaces.
type noNamespaces struct {
	namespacesapi.UnimplementedNamespacesServer
}

func (noNamespaces) List(context.Context, *namespacesapi.ListNamespacesRequest) (*namespacesapi.ListNamespacesResponse, error) {
	return &namespacesapi.ListNamespacesResponse{}, nil
}

// listen serves a socket of this process.
func listen(t *testing.T, name string, serve func(net.Listener) error) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), name))
	require.NoError(t, err)
	go func() { _ = serve(l) }()
}

// With the CRI, containerd calls while it loads its plugins. Its sockets appear one after the
// other, and the first may not be that of its API.
func TestCallsBeforeItListens(t *testing.T) {
	b := newBench(t)
	r := clients.New(b.store, b.space)
	defer r.Close()
	self := clients.Call{Process: clients.FindProcess(os.Getpid()), Proxy: "thinsnap"}
	require.NoError(t, r.Admit(t.Context(), self))
	require.Eventually(t, func() bool { return clients.IsSilent(r) }, time.Minute, time.Millisecond)

	asked := make(chan struct{}, 1000)
	debug := &http.Server{Handler: http.NotFoundHandler(), ConnState: func(net.Conn, http.ConnState) { asked <- struct{}{} }}
	defer debug.Close()
	listen(t, "containerd-debug.sock", debug.Serve)
	other := grpc.NewServer()
	defer other.Stop()
	listen(t, "containerd-other.sock", other.Serve)
	<-asked

	server := grpc.NewServer()
	defer server.Stop()
	introspectionapi.RegisterIntrospectionServer(server, introspection{})
	namespacesapi.RegisterNamespacesServer(server, noNamespaces{})
	listen(t, "containerd.sock", server.Serve)
	require.Eventually(t, func() bool {
		state, err := r.State(t.Context())
		return err == nil && state.Installation == "one"
	}, time.Minute, time.Millisecond)
}

// A gRPC server without containerd's API is not containerd.
func TestSocketOfAnotherProgram(t *testing.T) {
	b := newBench(t)
	server := grpc.NewServer()
	defer server.Stop()
	listen(t, "containerd.sock", server.Serve)
	r := clients.New(b.store, b.space)
	defer r.Close()
	require.NoError(t, r.Admit(t.Context(), clients.Call{Process: clients.FindProcess(os.Getpid()), Proxy: "thinsnap"}))
	require.Eventually(t, func() bool { return clients.IsSilent(r) }, time.Minute, time.Millisecond)
}
