package main

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/log"
	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/urfave/cli/v3"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/program"
	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/rpc"
	"github.com/thinsnap/thinsnap/internal/unixsocket"
)

// startExtension is the time in which systemd expects the next report of a running program.
const startExtension = time.Minute

// stopTime limits the wait for running operations after SIGTERM. Then they are cancelled.
const stopTime = 30 * time.Second

func (a *app) serveCommand() *cli.Command {
	return &cli.Command{
		Name:  "serve",
		Usage: "run the daemon",
		Description: "SIGTERM and SIGINT stop the daemon after the running operations have ended, at most 30 seconds later. A\n" +
			"second signal stops it at once. Mounted snapshots stay mounted, and the next daemon takes over.\n" +
			"If the pool cannot be opened, the daemon answers every call with the reason, and retries.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "root", Usage: "keep all data in this `DIR`", DefaultText: "as configured"},
			&cli.StringFlag{Name: "address", Usage: "listen for containerd on this `SOCKET`", DefaultText: "as configured"},
			&cli.StringFlag{Name: "log-level", Usage: "log at this `LEVEL`: trace, debug, info, warn or error",
				DefaultText: "as configured"},
		},
		Action: withArgs(0, 0, func(ctx context.Context, c *cli.Command) error {
			cfg, err := serveConfiguration(c)
			if err != nil {
				return err
			}
			if err := a.setUpLog(cfg.Log); err != nil {
				return err
			}
			unix.Umask(0o077)
			ctx, release := untilSignal(ctx)
			defer release()
			return serve(ctx, cfg, a.backend)
		}),
	}
}

// serveConfiguration returns the configuration with the flags of serve applied.
func serveConfiguration(c *cli.Command) (config.Config, error) {
	cfg, err := configuration(c)
	if err != nil {
		return cfg, err
	}
	for flag, value := range map[string]*string{
		"root": &cfg.Root, "address": &cfg.Address, "admin-address": &cfg.AdminAddress, "log-level": &cfg.Log.Level,
	} {
		if c.IsSet(flag) {
			*value = c.String(flag)
		}
	}
	return cfg, cfg.Validate()
}

func (a *app) setUpLog(cfg config.Log) error {
	log.L.Logger.SetOutput(a.errOut)
	if err := log.SetFormat(log.OutputFormat(cfg.Format)); err != nil {
		return err
	}
	return log.SetLevel(cfg.Level)
}

// serve runs the daemon until ctx ends, and then stops it gracefully. The servers answer before the
// pool is open, and without it.
func serve(ctx context.Context, cfg config.Config, b backend) (err error) {
	// Running operations outlive ctx, so that they can complete.
	work := context.WithoutCancel(ctx)
	started := time.Now()
	addresses := make(map[string]string)
	for _, client := range cfg.AllClients() {
		addresses[config.KeySpace(client.Name)] = client.Address
	}
	passed, err := unixsocket.Passed(addresses)
	if err != nil {
		return &config.Error{Problems: []error{err}}
	}
	opening := newOpening(func(ctx context.Context) (*service, error) {
		return b.open(program.WithProgress(ctx, extendStart), cfg)
	})
	opening.patient = len(passed) > 0
	reports := lateReports{opening}
	build := readBuild()
	metrics := admin.NewMetrics(reports, build.Version, build.Revision)
	about := admin.Daemon{
		Version: build.Version, Revision: build.Revision, Root: cfg.Root, Address: cfg.Address, StartedAt: started,
	}
	servers := newServers(metrics.ConnectionsLimited, len(cfg.Clients))
	defer func() { err = errors.Join(err, opening.close()) }()
	defer func() {
		timeout, cancel := context.WithTimeout(work, stopTime)
		defer cancel()
		servers.stop(timeout)
	}()
	recorder := admin.NewRecorder()
	recording, stopRecording := context.WithCancel(ctx)
	defer stopRecording()
	sockets := append(slices.Collect(maps.Values(addresses)), cfg.AdminAddress)
	if err := unixsocket.RestrictDirectories(sockets...); err != nil {
		return err
	}
	adminServer := admin.NewServer(work, reports, about, metrics, recorder)
	if err := servers.startUnix(ctx, cfg.AdminAddress, adminServer); err != nil {
		return err
	}
	if cfg.MetricsAddress != "" {
		if err := servers.startTCP(ctx, cfg.MetricsAddress, admin.NewMetricsServer(work, metrics)); err != nil {
			return err
		}
	}
	limits := rpc.NewLimits(len(cfg.AllClients()))
	for _, client := range cfg.AllClients() {
		of := work
		if client.Name != config.DefaultClient {
			of = log.WithLogger(work, log.G(work).WithField("client", client.Name))
		}
		server := snapshotServer{rpc.NewServer(of, lateSnapshotter{opening, client.Name}, lateComparer{opening, cfg},
			lateAdmission{opening, client.Name}, metrics.Of(client.Name), limits)}
		if l := passed[config.KeySpace(client.Name)]; l != nil {
			servers.start(l, server)
		} else if err := servers.startUnix(ctx, client.Address, server); err != nil {
			return err
		}
	}
	opening.start(ctx, func(err error) {
		if err != nil {
			notify(daemon.SdNotifyReady + "\nSTATUS=the pool is not open: " + oneLine(err))
			return
		}
		log.G(ctx).WithFields(log.Fields{
			"version": build.Version, "root": cfg.Root, "address": cfg.Address, "pool": cfg.Pool.Name,
			"took": time.Since(started).Round(time.Millisecond).String(),
		}).Info("serving")
		go recorder.Run(recording, reports)
		notify(daemon.SdNotifyReady + "\nSTATUS=the pool is open")
	})

	select {
	case <-ctx.Done():
		notify(daemon.SdNotifyStopping)
		log.G(ctx).Info("stopping: waiting for running operations to end")
		return nil
	case err := <-servers.failed:
		return err
	case err := <-opening.failed:
		return err
	}
}

// extendStart keeps systemd from ending a start that runs a program. Programs have their own time
// limit. After the start it has no effect.
func extendStart() {
	notify("EXTEND_TIMEOUT_USEC=" + strconv.FormatInt(startExtension.Microseconds(), 10))
}

// notify reports the daemon's state to systemd, if systemd gave it a notification socket.
func notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.L.WithError(err).Warn("systemd notification failed")
	}
}
