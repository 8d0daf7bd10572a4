package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/program"
	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/unixsocket"
	"github.com/thinsnap/thinsnap/metadata"
)

// fakeSnapshotter's Prepare waits until it is released.
type fakeSnapshotter struct {
	snapshots.Snapshotter
	begun, release chan struct{}
}

func (f *fakeSnapshotter) Prepare(context.Context, string, string, ...snapshots.Opt) ([]mount.Mount, error) {
	close(f.begun)
	<-f.release
	return []mount.Mount{{Type: "ext4", Source: "/dev/mapper/thinsnap-snap-3"}}, nil
}

func testConfig(t *testing.T) config.Config {
	t.Helper()
	dir := t.TempDir()
	cfg := config.Default()
	cfg.Root = dir
	cfg.Address = filepath.Join(dir, "s.sock")
	cfg.AdminAddress = filepath.Join(dir, "a.sock")
	return cfg
}

func onlyDefault(sn snapshots.Snapshotter) map[string]served {
	return map[string]served{config.DefaultClient: {snapshotter: sn}}
}

// fakeOpen returns a backend that counts the closes of its snapshotter.
func fakeOpen(sn snapshots.Snapshotter, closed *atomic.Int32) backend {
	return backend{open: func(context.Context, config.Config) (*service, error) {
		return &service{clients: onlyDefault(sn), comparer: fakeComparer{}, reports: fakeReports{}, close: func() error {
			closed.Add(1)
			return nil
		}}, nil
	}}
}

// fakeComparer returns a layer for all mounts.
type fakeComparer struct{}

func (fakeComparer) Compare(context.Context, []mount.Mount, []mount.Mount, ...diff.Opt) (ocispec.Descriptor, error) {
	return ocispec.Descriptor{MediaType: "a layer"}, nil
}

// systemd opens a notification socket, as systemd does.
func systemd(t *testing.T) net.PacketConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenPacket("unixgram", path)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	t.Setenv("NOTIFY_SOCKET", path)
	return conn
}

// ready is the notification that the pool is open.
const ready = "READY=1\nSTATUS=the pool is open"

func told(t *testing.T, conn net.PacketConn) string {
	t.Helper()
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(10*time.Second)))
	text := make([]byte, 1000)
	n, _, err := conn.ReadFrom(text)
	require.NoError(t, err)
	return string(text[:n])
}

// TestServe runs a daemon from start to stop: it notifies systemd, answers on all sockets, waits
// for a running operation when it stops, and then closes the snapshotter.
func TestServe(t *testing.T) {
	notified := systemd(t)
	cfg := testConfig(t)
	cfg.MetricsAddress = freePort(t)
	sn := &fakeSnapshotter{begun: make(chan struct{}), release: make(chan struct{})}
	var closed atomic.Int32
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, cfg, fakeOpen(sn, &closed)) }()
	require.Equal(t, ready, told(t, notified))

	for _, socket := range []string{cfg.Address, cfg.AdminAddress} {
		info, err := os.Stat(socket)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	}
	info, err := admin.NewClient(cfg.AdminAddress).Info(t.Context())
	require.NoError(t, err)
	require.Equal(t, cfg.Root, info.Daemon.Root)
	require.Equal(t, cfg.Address, info.Daemon.Address)
	response, err := http.Get("http://" + cfg.MetricsAddress + "/metrics")
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	require.Equal(t, http.StatusOK, response.StatusCode)

	// A second daemon on the same sockets fails, and opens nothing.
	require.ErrorIs(t, serve(t.Context(), cfg, backend{}), unixsocket.ErrInUse)

	conn, err := grpc.NewClient("unix://"+cfg.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	defer conn.Close()
	prepared := make(chan error, 1)
	go func() {
		_, err := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "thinsnap").Prepare(t.Context(), "k", "")
		prepared <- err
	}()
	<-sn.begun
	stop()
	require.Equal(t, "STOPPING=1", told(t, notified))
	_, err = admin.NewClient(cfg.AdminAddress).Info(t.Context())
	require.NoError(t, err, "the admin socket answers while operations end")
	require.Zero(t, closed.Load(), "not closed under a running operation")
	close(sn.release)
	require.NoError(t, <-prepared)
	require.NoError(t, <-ended)
	require.Equal(t, int32(1), closed.Load())
	require.NoFileExists(t, cfg.Address)
	require.NoFileExists(t, cfg.AdminAddress)
}

// failing returns a backend that cannot open the pool, and counts its attempts.
func failing(err error, attempts *atomic.Int32) backend {
	return backend{open: func(context.Context, config.Config) (*service, error) {
		attempts.Add(1)
		return nil, err
	}}
}

// TestWhatEndsTheDaemon: errors that only an operator can mend, and a root that another daemon
// uses.
func TestWhatEndsTheDaemon(t *testing.T) {
	cfg := testConfig(t)
	for _, final := range []error{metadata.ErrLocked, metadata.ErrNewer} {
		var attempts atomic.Int32
		require.ErrorIs(t, serve(t.Context(), cfg, failing(fmt.Errorf("open: %w", final), &attempts)), final)
		require.Equal(t, int32(1), attempts.Load())
		require.NoFileExists(t, cfg.Address)
	}
	require.NoError(t, os.Chmod(cfg.Root, 0o777))
	elsewhere := cfg
	elsewhere.Address, elsewhere.AdminAddress = filepath.Join(t.TempDir(), "s"), filepath.Join(t.TempDir(), "a")
	require.ErrorContains(t, serve(t.Context(), elsewhere, realBackend()), "so others may have changed its contents")
	require.NoError(t, os.Chmod(cfg.Root, 0o700))

	cfg.MetricsAddress = "192.0.2.1:1" // no machine has this address
	require.ErrorContains(t, serve(t.Context(), cfg, backend{}), "listen for metrics")
	require.NoFileExists(t, cfg.AdminAddress)
	cfg.MetricsAddress = ""

	ctx, stop := context.WithCancel(t.Context())
	stopped := backend{open: func(ctx context.Context, _ config.Config) (*service, error) {
		stop()
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	require.NoError(t, serve(ctx, cfg, stopped), "stopped while it starts")
}

// TestStartIsExtendedWhileAProgramRuns: LVM takes minutes to create a large pool.
func TestStartIsExtendedWhileAProgramRuns(t *testing.T) {
	notified := systemd(t)
	bin := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(bin, "pvs"), []byte("#!/bin/sh\necho '{\"report\":[{\"pv\":[]}]}'\n"), 0o700))
	b := backend{open: func(ctx context.Context, _ config.Config) (*service, error) {
		require.NoError(t, pool.LVMSpec{ID: "x", Name: "x"}.Remove(program.WithDirectories(ctx, bin), nil))
		return nil, metadata.ErrNewer
	}}
	require.ErrorIs(t, serve(t.Context(), testConfig(t), b), metadata.ErrNewer)
	require.Equal(t, "EXTEND_TIMEOUT_USEC=60000000", told(t, notified))
}

func TestServeFlags(t *testing.T) {
	var got config.Config
	b := backend{open: func(_ context.Context, cfg config.Config) (*service, error) {
		got = cfg
		return nil, fmt.Errorf("open: %w", metadata.ErrNewer)
	}}
	dir := t.TempDir()
	file, address := filepath.Join(dir, "config.toml"), filepath.Join(dir, "x.sock")
	text := fmt.Sprintf("root = \"/srv/file\"\nadmin_address = %q\n[pool]\nname = \"mine\"\n", filepath.Join(dir, "a.sock"))
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	r := try(t, false, b, "serve", "--config", file, "--root", "/srv/flag", "--address", address, "--log-level", "warn")
	require.Equal(t, result{exitConfig, "", "thinsnap: open: the store was made by a newer thinsnap\n"}, r)
	require.Equal(t, "/srv/flag", got.Root)
	require.Equal(t, address, got.Address)
	require.Equal(t, "warn", got.Log.Level)
	require.Equal(t, "mine", got.Pool.Name)

	r = try(t, false, b, "serve", "--config", file, "--root", "here")
	require.Equal(t, result{exitConfig, "", "thinsnap: configuration: root = \"here\": must be an absolute path other than /\n"}, r)
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().String()
}

// preparing returns true if a daemon's metrics show a running Prepare.
func preparing(t *testing.T, adminAddress string) bool {
	t.Helper()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", adminAddress)
		},
	}}
	response, err := client.Get("http://localhost/metrics")
	require.NoError(t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return strings.Contains(string(text), `thinsnap_operations_running{client="default",method="Prepare"} 1`)
}
