package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/thinsnap/thinsnap/internal/page"
)

// pageServer is one of servers.
type pageServer struct{ http.Server }

// Serve answers on the listener and returns nil after Shutdown.
func (s *pageServer) Serve(l net.Listener) error {
	if err := s.Server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (a *app) pageCommand() *cli.Command {
	return &cli.Command{
		Name:  "page",
		Usage: "show the pool, its snapshots and what the daemon does in a browser",
		Description: "It serves a page on a port of this machine's loopback address until it is stopped, and prints where. The\n" +
			"address has a secret in it, which is new each time: whoever knows it can read keys and sizes of snapshots, and\n" +
			"change nothing. To look from elsewhere, forward the port: ssh -L PORT:127.0.0.1:PORT HOST.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "listen", Usage: "serve on this loopback `ADDRESS`; port 0 is any that is free", Value: "127.0.0.1:0"},
		},
		Action: taking(0, 0, a.page),
	}
}

func (a *app) page(ctx context.Context, c *cli.Command) error {
	daemon, err := client(c)
	if err != nil {
		return err
	}
	if _, err := daemon.Pool(ctx); err != nil {
		return err
	}
	address, err := loopback(c.String("listen"))
	if err != nil {
		return err
	}
	ctx, release := untilSignal(ctx)
	defer release()
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("listening for the browser: %w", err)
	}
	token := rand.Text()
	servers := newServers()
	servers.start(l, &pageServer{http.Server{
		Handler: page.Proxy(daemon.Transport(), token), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute,
		WriteTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
	}})
	defer func() {
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		servers.stop(bounded)
	}()
	if _, err := fmt.Fprintf(a.out, "http://%s/%s/\n", l.Addr(), token); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-servers.failed:
		return err
	}
}

// loopback returns an address if it is one of this machine alone: the page is not for a network.
func loopback(address string) (string, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil || !net.ParseIP(host).IsLoopback() {
		return "", usagef("--listen %s: must be an address of loopback with a port, such as 127.0.0.1:8080", address)
	}
	return address, nil
}
