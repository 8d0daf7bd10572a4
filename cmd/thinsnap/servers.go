package main

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/containerd/log"
	"golang.org/x/net/netutil"

	"github.com/thinsnap/thinsnap/internal/rpc"
	"github.com/thinsnap/thinsnap/internal/unixsocket"
)

// server is one that can be stopped in good order.
type server interface {
	// Serve returns nil after Shutdown, with the listener closed.
	Serve(l net.Listener) error
	// Shutdown takes nothing new and lets what runs end while ctx lasts.
	Shutdown(ctx context.Context) error
}

// snapshotServer is containerd's server as one of servers.
type snapshotServer struct{ *rpc.Server }

// Shutdown reports operations that did not end in time.
func (s snapshotServer) Shutdown(ctx context.Context) error {
	if !s.Stop(ctx) {
		return errors.New("operations of the snapshotter did not end when they were cancelled")
	}
	return nil
}

// servers are the running servers of the daemon.
type servers struct {
	running []running
	failed  chan error // what a server ended with, other than being stopped; has room for all of them
}

type running struct {
	server
	ended chan struct{} // closed when Serve has returned, and the socket is gone
}

func newServers() *servers { return &servers{failed: make(chan error, 3)} }

// startUnix runs a server on a unix socket.
func (s *servers) startUnix(ctx context.Context, path string, srv server) error {
	l, err := unixsocket.Listen(ctx, path)
	if err != nil {
		return err
	}
	s.start(l, srv)
	return nil
}

// startTCP runs a server on a TCP address.
func (s *servers) startTCP(ctx context.Context, address string, srv server) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("listening for metrics: %w", err)
	}
	s.start(l, srv)
	return nil
}

// connections is how many a server has at a time; others wait to be taken. containerd needs one.
const connections = 64

func (s *servers) start(l net.Listener, srv server) {
	l = netutil.LimitListener(l, connections)
	r := running{srv, make(chan struct{})}
	s.running = append(s.running, r)
	go func() {
		defer close(r.ended)
		if err := srv.Serve(l); err != nil {
			s.failed <- fmt.Errorf("serving on %s: %w", l.Addr(), err)
		}
	}()
}

// stop ends the servers in the opposite order of their start, so that the operator can look at the daemon for as long as
// it has something to do.
func (s *servers) stop(ctx context.Context) {
	for i := len(s.running) - 1; i >= 0; i-- {
		if err := s.running[i].Shutdown(ctx); err != nil {
			log.G(ctx).WithError(err).Error("stopping")
			continue
		}
		<-s.running[i].ended
	}
}
