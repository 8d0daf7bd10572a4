package rpc

import (
	"context"
	"errors"
	"net"
	"time"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/diffservice"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/defaults"
	"google.golang.org/grpc"
)

const (
	// maxRunning limits running unary calls of the snapshotter, except Stat. Further ones wait. A call in the kernel takes
	// a thread, and Go ends a process with 10,000 threads. More calls are not faster, because the pool takes one message
	// at a time.
	//
	// A cancelled call ends, but its thread may stay in the kernel: the snapshotter limits such threads.
	maxRunning = 128
	// maxReading limits running calls of Stat, which only reads the store. They do not wait for the pool. But they read a
	// mapped file: if the root's disk hangs, they keep their threads.
	maxReading = 512
	// maxStreams limits the open calls of a connection. The client queues further ones.
	maxStreams = 1024
	// windowBytes is how much a client may send before it is read, per call and per connection. A fixed size avoids
	// gRPC's measurement of the connection: a ping for each request, which costs four system calls, two of them the
	// client's.
	windowBytes = 64 << 10
	// handshakeTime limits the wait for a client's HTTP/2 preface.
	handshakeTime = 10 * time.Second
)

// cancelTime is how long cancelled calls may take to end.
const cancelTime = 5 * time.Second

// Observer is notified of every call, with the key of its snapshot or "". end is called once when the call ends, with
// the name of a gRPC code, and returns the call's duration.
type Observer interface {
	Begin(method, key string) (end func(outcome string) time.Duration)
}

// Server serves the snapshotter and the differ to containerd.
type Server struct{ grpc *grpc.Server }

// Limits limit the running calls of several servers together. Half of each limit is reserved, in equal parts for
// the servers: so hanging calls of one client block no other client.
type Limits struct {
	servers          int
	running, reading turns // shared by all servers
}

// NewLimits returns limits for the servers of one snapshotter, of which there must be at least one.
func NewLimits(servers int) *Limits {
	return &Limits{servers: servers, running: make(turns, maxRunning/2), reading: make(turns, maxReading/2)}
}

// forServer returns the limits of one server.
func (l *Limits) forServer() (running, reading share) {
	reserved := func(all int) turns { return make(turns, max(1, all/2/l.servers)) }
	return share{reserved(maxRunning), l.running}, share{reserved(maxReading), l.reading}
}

// NewServer returns a server for a snapshotter and a differ. The differ applies nothing, and without a comparer
// compares nothing: containerd then asks its next differ. The server does not close the snapshotter. Calls use the
// logger of ctx. Without an admission, every process may make every call.
func NewServer(
	ctx context.Context, sn snapshots.Snapshotter, comparer diff.Comparer, admission Admission, observer Observer,
	limits *Limits,
) *Server {
	i := interceptor{logContext: ctx, admission: admission, observer: observer}
	i.running, i.reading = limits.forServer()
	s := grpc.NewServer(
		grpc.Creds(peerCredentials{}),
		grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
		grpc.MaxSendMsgSize(defaults.DefaultMaxSendMsgSize),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.StaticStreamWindowSize(windowBytes),
		grpc.StaticConnWindowSize(windowBytes),
		grpc.ConnectionTimeout(handshakeTime),
		grpc.UnaryInterceptor(i.unary),
		grpc.StreamInterceptor(i.stream),
	)
	snapshotsapi.RegisterSnapshotsServer(s, snapshotservice.FromSnapshotter(sn))
	diffapi.RegisterDiffServer(s, diffservice.FromApplierAndComparer(nil, comparer))
	return &Server{s}
}

// Serve serves the listener until Stop, then returns nil, even if Stop was called first.
func (s *Server) Serve(l net.Listener) error {
	if err := s.grpc.Serve(l); !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return nil
}

// Stop refuses new calls, and waits for running ones. If ctx ends first, it cancels them. It returns false if calls
// still run some seconds later.
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
	go s.grpc.Stop() // cancels all calls' contexts; GracefulStop returns when the calls have ended
	select {
	case <-ended:
		return true
	case <-time.After(cancelTime):
		return false
	}
}
