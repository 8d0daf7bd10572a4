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
	// maxRunning limits the running calls that change something; more calls wait. A call in the
	// kernel takes a thread, and Go ends a process with 10,000 threads. More calls are not faster:
	// the pool takes one message at a time. A call that has given up ends, but its thread may stay in
	// the kernel: the snapshotter limits these.
	maxRunning = 128
	// maxReading limits the calls that only read the store. They do not wait for the pool, but they
	// read a file that is mapped into memory: a root disk that hangs keeps their threads.
	maxReading = 512
	// maxStreams limits the open calls of a connection. The client holds the others back.
	maxStreams = 1024
	// windowBytes is what a client may send of a call, and of all calls of a connection, before it is read. It is fixed:
	// gRPC would else measure the connection by a ping for each request, which is four more system calls, two of them the
	// client's.
	windowBytes = 64 << 10
	// handshakeTime limits the wait for a client's HTTP/2 preface.
	handshakeTime = 10 * time.Second
)

// cancelTime is the time that cancelled calls have to end.
const cancelTime = 5 * time.Second

// Observer is notified of every call, with the key of its snapshot or "". end is called once when
// the call ends, with the name of a gRPC code, and returns how long the call took.
type Observer interface {
	Begin(method, key string) (end func(outcome string) time.Duration)
}

// Server serves the snapshotter and the differ to containerd.
type Server struct{ grpc *grpc.Server }

// Limits limit the running calls of several servers together. Half of the calls are reserved, in equal parts, for one
// server each: calls of one client that do not end keep out no call of another.
type Limits struct {
	servers          int
	running, reading turns // that any server takes
}

// NewLimits returns limits for the servers of one snapshotter; there is at least one.
func NewLimits(servers int) *Limits {
	return &Limits{servers: servers, running: make(turns, maxRunning/2), reading: make(turns, maxReading/2)}
}

// ofServer returns the limits of one server.
func (l *Limits) ofServer() (running, reading share) {
	reserved := func(all int) turns { return make(turns, max(1, all/2/l.servers)) }
	return share{reserved(maxRunning), l.running}, share{reserved(maxReading), l.reading}
}

// NewServer returns a server for a snapshotter, and for a differ that applies nothing: containerd asks its next
// differ then, and without a comparer for each comparison. It does not close the snapshotter. Calls use the logger
// of ctx. Without an admission, every process may make every call.
func NewServer(
	ctx context.Context, sn snapshots.Snapshotter, comparer diff.Comparer, admission Admission, observer Observer,
	limits *Limits,
) *Server {
	i := interceptor{logContext: ctx, admission: admission, observer: observer}
	i.running, i.reading = limits.ofServer()
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

// Serve serves the listener until Stop, and then returns nil, even if Stop was called first.
func (s *Server) Serve(l net.Listener) error {
	if err := s.grpc.Serve(l); !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return nil
}

// Stop refuses new calls, and waits for the running ones. If ctx ends first, it cancels them. It
// returns false if calls still run after they were cancelled.
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
	go s.grpc.Stop() // cancels the contexts of all calls; GracefulStop then returns when they have ended
	select {
	case <-ended:
		return true
	case <-time.After(cancelTime):
		return false
	}
}
