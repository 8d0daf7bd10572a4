// Package rpc serves a snapshotter to containerd over gRPC: with a line in the log and a measurement for every call, and
// so that a call that panics does not end the daemon.
package rpc

import (
	"context"
	"errors"
	"net"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/defaults"
	"google.golang.org/grpc"
)

const (
	// running is how many calls that do something may run at a time; more wait for their turn. In the kernel each takes a
	// thread, of which Go's runtime makes 10,000 before it ends the process, and more at once are not faster: the pool
	// takes messages one by one. It is not the most threads that there can be: a call that gives up gives its turn back,
	// while what it was doing may stay in the kernel.
	running = 128
	// streams is how many calls one connection may have open. Its client keeps the others back.
	streams = 1024
	// handshakeTime is how long a client has for saying that it talks HTTP/2.
	handshakeTime = 10 * time.Second
)

// cancelTime is how long calls have to end once they were cancelled.
const cancelTime = 5 * time.Second

// Observer is told of every call, and which snapshot's key it is about, if it is about one. Its end function is called
// once, with a gRPC code's name, when the call ends.
type Observer interface {
	Begin(method, key string) (end func(outcome string))
}

// Server is containerd's side of the daemon.
type Server struct{ grpc *grpc.Server }

// NewServer returns a server for a snapshotter, which is not closed by it. Each call runs with the logger of ctx.
func NewServer(ctx context.Context, sn snapshots.Snapshotter, observer Observer) *Server {
	i := interceptor{logContext: ctx, observer: observer, turns: make(chan struct{}, running)}
	s := grpc.NewServer(
		grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
		grpc.MaxSendMsgSize(defaults.DefaultMaxSendMsgSize),
		grpc.MaxConcurrentStreams(streams),
		grpc.ConnectionTimeout(handshakeTime),
		grpc.UnaryInterceptor(i.unary),
		grpc.StreamInterceptor(i.stream),
	)
	snapshotsapi.RegisterSnapshotsServer(s, snapshotservice.FromSnapshotter(sn))
	return &Server{s}
}

// Serve answers on the listener and returns nil when Stop is through, even if Stop came first.
func (s *Server) Serve(l net.Listener) error {
	if err := s.grpc.Serve(l); !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return nil
}

// Stop takes no new calls and returns true once the running ones have ended. When ctx ends first it cancels them; then it
// returns false if some have not ended soon after.
func (s *Server) Stop(ctx context.Context) bool {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.grpc.GracefulStop()
	}()
	select {
	case <-ended:
		return true
	case <-ctx.Done():
	}
	go s.grpc.Stop() // cancels the contexts of all calls; with a graceful stop under way, that returns when they have ended
	select {
	case <-ended:
		return true
	case <-time.After(cancelTime):
		return false
	}
}
