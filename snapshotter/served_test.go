package snapshotter_test

import (
	"context"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/thinsnap/thinsnap/internal/rpc"
)

// served is a bench behind a socket, as for containerd.
type served struct {
	*bench
	address string
	running running
	walked  atomic.Int32 // the ended walks
}

func (s *served) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	defer s.walked.Add(1)
	return s.bench.Walk(ctx, fn, filters...)
}

type running struct{ n atomic.Int32 }

func (r *running) Begin(string, string) func(string) time.Duration {
	r.n.Add(1)
	return func(string) time.Duration { r.n.Add(-1); return 0 }
}

// serve serves the bench until the test ends, and then requires that no call is stuck.
func serve(t *testing.T, b *bench) *served {
	t.Helper()
	s := &served{bench: b, address: filepath.Join(t.TempDir(), "s")}
	l, err := net.Listen("unix", s.address)
	require.NoError(t, err)
	server := rpc.NewServer(t.Context(), s, nil, nil, &s.running, rpc.NewLimits(1))
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	t.Cleanup(func() {
		require.True(t, server.Stop(context.Background()))
		require.NoError(t, <-ended)
	})
	return s
}

// client returns a client with its own connection, as containerd makes it.
func (s *served) client(t *testing.T, opts ...grpc.DialOption) (snapshots.Snapshotter, *grpc.ClientConn) {
	t.Helper()
	opts = append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(defaults.DefaultMaxRecvMsgSize), grpc.MaxCallSendMsgSize(defaults.DefaultMaxSendMsgSize)))
	conn, err := grpc.NewClient("unix://"+s.address, opts...)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "thinsnap"), conn
}
