package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	// serveVariable makes the test binary a daemon with the configuration file in its value.
	serveVariable = "THINSNAP_TEST_SERVE"
	// commandVariable makes the test binary thinsnap's command line.
	commandVariable = "THINSNAP_TEST_COMMAND"
)

func TestMain(m *testing.M) {
	if os.Getenv(commandVariable) != "" {
		a := &app{out: os.Stdout, errOut: os.Stderr}
		os.Exit(a.run(context.Background(), os.Args))
	}
	file := os.Getenv(serveVariable)
	if file == "" {
		os.Exit(m.Run())
	}
	var closed atomic.Int32
	sn := &fakeSnapshotter{begun: make(chan struct{}), release: make(chan struct{})}
	a := &app{out: os.Stdout, errOut: os.Stderr, backend: fakeOpen(sn, &closed)}
	os.Exit(a.run(context.Background(), []string{"thinsnap", "serve", "--config", file}))
}

// startProcess starts a daemon in another process, and waits until it is ready.
func startProcess(t *testing.T, notified net.PacketConn) (process *exec.Cmd, address string) {
	t.Helper()
	cfg := testConfig(t)
	file := filepath.Join(cfg.Root, "config.toml")
	text := fmt.Sprintf("root = %q\naddress = %q\nadmin_address = %q\n", cfg.Root, cfg.Address, cfg.AdminAddress)
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Second)
	t.Cleanup(cancel)
	process = exec.CommandContext(ctx, os.Args[0])
	process.Env = append(os.Environ(), serveVariable+"="+file)
	require.NoError(t, process.Start())
	require.Equal(t, ready, told(t, notified))
	return process, cfg.Address
}

func TestSignalStopsTheDaemon(t *testing.T) {
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGINT} {
		notified := systemd(t)
		process, address := startProcess(t, notified)
		require.NoError(t, process.Process.Signal(signal))
		require.Equal(t, "STOPPING=1", told(t, notified))
		require.NoError(t, process.Wait())
		require.NoFileExists(t, address)
	}
}

// TestSecondSignalEndsTheDaemon: after the first signal the daemon waits for a running operation.
// The second one ends it at once.
func TestSecondSignalEndsTheDaemon(t *testing.T) {
	notified := systemd(t)
	process, address := startProcess(t, notified)
	conn, err := grpc.NewClient("unix://"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	defer conn.Close()
	client := snapshotsapi.NewSnapshotsClient(conn)
	failed := make(chan error, 1)
	go func() {
		_, err := client.Prepare(t.Context(), &snapshotsapi.PrepareSnapshotRequest{Key: "k"})
		failed <- err
	}()
	// The daemon's metrics show when the call has begun.
	require.Eventually(t, func() bool { return preparing(t, filepath.Join(filepath.Dir(address), "a.sock")) },
		10*time.Second, 20*time.Millisecond)
	require.NoError(t, process.Process.Signal(unix.SIGTERM))
	require.Equal(t, "STOPPING=1", told(t, notified))
	require.NoError(t, process.Process.Signal(unix.SIGTERM))
	var exit *exec.ExitError
	require.ErrorAs(t, process.Wait(), &exit)
	require.Equal(t, exitFailure, exit.ExitCode())
	require.Error(t, <-failed)
}
