package main

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/internal/httpserver"
	"github.com/thinsnap/thinsnap/internal/rpc"
	"github.com/thinsnap/thinsnap/internal/unixsocket"
)

// server is a server that can be stopped gracefully.
type server interface {
	// Serve closes the listener before it returns, and returns nil after Shutdown.
	Serve(l net.Listener) error
	// Shutdown refuses new requests, and waits for running ones until ctx ends.
	Shutdown(ctx context.Context) error
}

// snapshotServer adapts rpc.Server, which containerd calls, to server.
type snapshotServer struct{ *rpc.Server }

// Shutdown fails if operations are still running after they were cancelled.
func (s snapshotServer) Shutdown(ctx context.Context) error {
	if !s.Stop(ctx) {
		return errors.New("snapshotter operations still run after they were cancelled")
	}
	return nil
}

// servers are the running servers of the process.
type servers struct {
	running []running
	failed  chan error // errors of servers that ended unexpectedly; has space for all of them
	// limited counts how often an address has reached its limit of connections.
	limited func(address string)
}

type running struct {
	server
	ended chan struct{} // closed after Serve has returned and the socket is removed
}

// newServers returns servers with space for the errors of a daemon with the given number of further
// clients.
func newServers(limited func(address string), further int) *servers {
	return &servers{failed: make(chan error, 3+further), limited: limited}
}

func (s *servers) startUnix(ctx context.Context, path string, srv server) error {
	l, err := unixsocket.Listen(ctx, path)
	if err != nil {
		return err
	}
	s.start(l, srv)
	return nil
}

func (s *servers) startTCP(ctx context.Context, address string, srv server) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("listen for metrics: %w", err)
	}
	if !httpserver.IsLoopbackHost(l.Addr().String()) {
		log.G(ctx).WithField("address", l.Addr()).Warn("all who reach this address can read the metrics: " +
			"use a loopback address (metrics_address) to restrict them to this machine")
	}
	s.start(httpserver.LimitEach(l, connectionsOfOne), srv)
	return nil
}

// connectionsOfOne limits the connections of one peer on a network; more are closed.
const connectionsOfOne = 16

func (s *servers) start(l net.Listener, srv server) {
	total, ofProcess := connections, 0
	if _, ok := srv.(snapshotServer); ok {
		total, ofProcess = callers, connectionsOfProcess
	}
	l = limitConnections(l, total, ofProcess, noteLimit(l.Addr().String(), s.limited))
	r := running{srv, make(chan struct{})}
	s.running = append(s.running, r)
	go func() {
		defer close(r.ended)
		if err := srv.Serve(l); err != nil {
			s.failed <- fmt.Errorf("serve on %s: %w", l.Addr(), err)
		}
	}()
}

// stop stops the servers in reverse order, so that the admin socket answers while operations are
// still running.
func (s *servers) stop(ctx context.Context) {
	for i := len(s.running) - 1; i >= 0; i-- {
		if err := s.running[i].Shutdown(ctx); err != nil {
			log.G(ctx).WithError(err).Error("a server did not stop gracefully")
			continue
		}
		<-s.running[i].ended
	}
}
