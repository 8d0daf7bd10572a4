package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/thinsnap/thinsnap/internal/httpserver"
	"github.com/thinsnap/thinsnap/internal/page"
)

func (a *app) pageCommand() *cli.Command {
	return &cli.Command{
		Name:  "page",
		Usage: "show the pool, its snapshots and the daemon's activity in a browser",
		Description: "Serves a web page on a loopback address until it is stopped, and prints its URL. The URL has a secret that\n" +
			"is new each time. Anyone with the URL can read the keys, sizes and owners of snapshots, and can change\n" +
			"nothing. To use the page from another machine, forward the port: ssh -L PORT:127.0.0.1:PORT HOST.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "listen", Usage: "serve on this loopback `ADDRESS`; port 0 takes any free port",
				Value: "127.0.0.1:0"},
		},
		Action: withArgs(0, 0, a.page),
	}
}

func (a *app) page(ctx context.Context, c *cli.Command) error {
	client, err := newClient(c)
	if err != nil {
		return err
	}
	if _, err := client.Pool(ctx); err != nil {
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
		return fmt.Errorf("listen for the browser: %w", err)
	}
	token := rand.Text()
	servers := newServers(func(string) {}, 0) // no metrics of this process are collected
	servers.start(l, httpserver.New(ctx, page.Proxy(client.Transport(), token), time.Minute))
	defer func() {
		timeout, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		servers.stop(timeout)
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

// loopback returns the address if only this machine can reach it: the page must not be on a
// network.
func loopback(address string) (string, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil || !net.ParseIP(host).IsLoopback() {
		return "", usagef("--listen %s: must be a loopback address with a port, such as 127.0.0.1:8080", address)
	}
	return address, nil
}
