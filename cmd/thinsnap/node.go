package main

import (
	"context"
	_ "embed" // the units
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/httpserver"
	"github.com/thinsnap/thinsnap/internal/install"
	"github.com/thinsnap/thinsnap/internal/setup"
)

var (
	//go:embed systemd/thinsnap.service
	serviceUnit []byte
	//go:embed systemd/thinsnap.socket
	socketUnit []byte
)

func (a *app) nodeCommand() *cli.Command {
	containerd := &cli.StringFlag{Name: "containerd", Value: string(setup.System),
		Usage: "the `KIND` of the node's containerd: \"containerd\", or \"k3s\" for k3s and RKE2"}
	enter := &cli.BoolFlag{Name: "enter",
		Usage: "first enter the node's mount namespace; the container must be privileged and have hostPID"}
	runtimes := &cli.StringSliceFlag{Name: "runtime", Usage: runtimeUsage}
	byDefault := &cli.BoolFlag{Name: "default", Usage: "make thinsnap the snapshotter of all pods"}
	return &cli.Command{
		Name:  "node",
		Usage: "install thinsnap on a Kubernetes node, or remove it, from a pod",
		Commands: []*cli.Command{
			{
				Name:  "install",
				Usage: "install this program, its units and the configuration on the node, and configure containerd",
				Description: "Writes missing files, replaces those of another version of thinsnap, enables and starts the units, and\n" +
					"restarts containerd if its configuration changes. Never replaces files that thinsnap did not write.",
				Flags:  []cli.Flag{containerd, enter, runtimes, byDefault},
				Action: a.onNode(a.installNode),
			},
			{
				Name:  "configure",
				Usage: "only configure the node's containerd, for a daemon that runs in a pod",
				Flags: []cli.Flag{containerd, enter, runtimes},
				Action: a.onNode(func(ctx context.Context, c *cli.Command, text []byte) error {
					return new(install.Machine).Configure(ctx, text, setup.Kind(c.String("containerd")), setupArgs(c)...)
				}),
			},
			{
				Name:  "remove",
				Usage: "undo install and configure; the pool and its data stay",
				Flags: []cli.Flag{containerd, enter},
				Action: a.onNode(func(ctx context.Context, c *cli.Command, _ []byte) error {
					return new(install.Machine).Remove(ctx, setup.Kind(c.String("containerd")))
				}),
			},
			{
				Name:   "metrics",
				Usage:  "serve the metrics of the node's daemon, and nothing else",
				Flags:  []cli.Flag{&cli.StringFlag{Name: "listen", Usage: "serve on this `ADDRESS`", Value: ":9777"}},
				Action: withArgs(0, 0, a.serveNodeMetrics),
			},
		},
	}
}

// onNode returns the action of a command that works on the node. With --enter it opens the
// container's configuration file, and runs the command again in the node's mount namespace, with
// the file as the standard input.
func (a *app) onNode(do func(ctx context.Context, c *cli.Command, text []byte) error) cli.ActionFunc {
	return withArgs(0, 0, func(ctx context.Context, c *cli.Command) error {
		if err := a.setUpLog(config.Default().Log); err != nil {
			return err
		}
		if !c.Bool("enter") {
			text, err := io.ReadAll(a.in)
			if err != nil {
				return err
			}
			return do(ctx, c, text)
		}
		file, err := os.Open(c.String("config"))
		if err != nil {
			return err
		}
		defer file.Close()
		args := []string{"thinsnap", "node", c.Name, "--containerd", c.String("containerd")}
		return install.Enter(append(args, setupArgs(c)...), file)
	})
}

func setupArgs(c *cli.Command) (args []string) {
	if c.Bool("default") {
		args = append(args, "--default")
	}
	if names := strings.Join(c.StringSlice("runtime"), ","); names != "" {
		args = append(args, "--runtime", names)
	}
	return args
}

func (a *app) installNode(ctx context.Context, c *cli.Command, text []byte) error {
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	files := install.Files{Program: program, Service: serviceUnit, Socket: socketUnit, Config: text}
	return new(install.Machine).Install(ctx, files, setup.Kind(c.String("containerd")), setupArgs(c)...)
}

// scrapeStopTime limits the wait for running scrapes after a signal: Prometheus' default timeout.
const scrapeStopTime = 10 * time.Second

// serveNodeMetrics serves until a signal arrives.
func (a *app) serveNodeMetrics(ctx context.Context, c *cli.Command) error {
	client, err := newClient(c)
	if err != nil {
		return err
	}
	proxy := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", "daemon" },
		Transport: client.Transport(),
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", proxy)
	listener, err := net.Listen("tcp", c.String("listen"))
	if err != nil {
		return err
	}
	ctx, release := untilSignal(ctx)
	defer release()
	work := context.WithoutCancel(ctx)
	servers := newServers(func(string) {}, 0) // the daemon's metrics do not count the connections of this process
	servers.start(listener, httpserver.New(work, mux, time.Minute))
	defer func() {
		timeout, cancel := context.WithTimeout(work, scrapeStopTime)
		defer cancel()
		servers.stop(timeout)
	}()
	select {
	case <-ctx.Done():
		return nil
	case err := <-servers.failed:
		return err
	}
}
