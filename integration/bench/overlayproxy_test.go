package bench

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/log"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/thinsnap/thinsnap/integration/harness"
)

// overlayProxyVariable has the directory of a snapshotter that this program serves instead of running tests.
const overlayProxyVariable = "THINSNAP_BENCH_OVERLAYFS"

func overlayProxySocket(dir string) string { return filepath.Join(dir, "overlayfs.sock") }

func TestMain(m *testing.M) {
	dir := os.Getenv(overlayProxyVariable)
	if dir == "" {
		os.Exit(m.Run())
	}
	log.L.Fatal(serveOverlayfs(dir))
}

// serveOverlayfs serves containerd's overlayfs snapshotter, as containerd configures it, in a process of its own.
func serveOverlayfs(dir string) error {
	sn, err := overlay.NewSnapshotter(filepath.Join(dir, "root"), overlay.AsynchronousRemove)
	if err != nil {
		return err
	}
	listener, err := net.Listen("unix", overlayProxySocket(dir))
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(sn))
	return server.Serve(listener)
}

// startOverlayProxy returns the proxy that containerd is to use, and the process that serves it until the test ends.
func startOverlayProxy(t testing.TB, dir string) (harness.Proxy, int) {
	t.Helper()
	program, err := os.Executable()
	require.NoError(t, err)
	var said strings.Builder
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), overlayProxyVariable+"="+dir)
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		require.NoError(t, cmd.Process.Kill())
		_ = cmd.Wait() // it was killed
	})
	socket := overlayProxySocket(dir)
	require.Eventually(t, func() bool {
		_, err := os.Stat(socket)
		return err == nil
	}, time.Minute, 10*time.Millisecond, "overlayfs as a proxy does not listen")
	return harness.Proxy{Name: OverlayProxy, Address: socket, Root: filepath.Join(dir, "root")}, cmd.Process.Pid
}
