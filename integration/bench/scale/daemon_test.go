package scale

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/thinsnap/thinsnap/internal/dmtest/bulk"
	"github.com/thinsnap/thinsnap/metadata"
)

// startLimit bounds the time to a daemon's first answer, generously.
const startLimit = time.Minute

// daemon is a child process with containerd's snapshotter client on its socket.
type daemon struct {
	snapshots.Snapshotter
	root    string
	cmd     *exec.Cmd
	conn    *grpc.ClientConn
	stdin   io.WriteCloser
	counted *json.Decoder
	took    time.Duration // from exec to the first answer
}

// makeRoot makes a root directory with n snapshots in its store, on a disk, because /tmp may be in memory.
func makeRoot(b *testing.B, n int) string {
	b.Helper()
	root, err := os.MkdirTemp("/var/tmp", "thinsnap-scale-")
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, os.RemoveAll(root)) })
	store, err := metadata.Open(storePath(root), metadata.Options{})
	require.NoError(b, err)
	require.NoError(b, bulk.Fill(b.Context(), store, n))
	require.NoError(b, store.Close())
	return root
}

func evict(b *testing.B, root string) {
	b.Helper()
	f, err := os.Open(storePath(root))
	require.NoError(b, err)
	defer f.Close()
	require.NoError(b, f.Sync())
	require.NoError(b, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
}

// start starts a daemon on a root directory and waits for its first answer, about the snapshot key.
func start(b *testing.B, root, key string) *daemon {
	b.Helper()
	program, err := os.Executable()
	require.NoError(b, err)
	logFile, err := os.Create(filepath.Join(root, "log"))
	require.NoError(b, err)
	defer logFile.Close()
	d := &daemon{root: root, cmd: exec.Command(program)}
	d.cmd.Env = append(os.Environ(), rootVariable+"="+root)
	d.cmd.Stderr = logFile
	d.stdin, err = d.cmd.StdinPipe()
	require.NoError(b, err)
	stdout, err := d.cmd.StdoutPipe()
	require.NoError(b, err)
	d.counted = json.NewDecoder(stdout)

	often := backoff.Config{BaseDelay: time.Millisecond, Multiplier: 1, MaxDelay: time.Millisecond}
	d.conn, err = grpc.NewClient("unix://"+socketPath(root),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: often, MinConnectTimeout: time.Second}),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	require.NoError(b, err)
	d.Snapshotter = proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(d.conn), "thinsnap")

	ctx, cancel := context.WithTimeout(b.Context(), startLimit)
	defer cancel()
	started := time.Now()
	require.NoError(b, d.cmd.Start())
	_, err = d.Stat(ctx, key)
	d.took = time.Since(started)
	require.NoError(b, err, "the daemon's log: %s", d.log(b))
	return d
}

func (d *daemon) log(b *testing.B) string {
	b.Helper()
	content, err := os.ReadFile(filepath.Join(d.root, "log"))
	require.NoError(b, err)
	return string(content)
}

func (d *daemon) stop(b *testing.B) {
	b.Helper()
	require.NoError(b, d.conn.Close())
	require.NoError(b, d.stdin.Close())
	require.NoError(b, d.cmd.Wait(), "the daemon's log: %s", d.log(b))
}

func (d *daemon) counts(b *testing.B) counts {
	b.Helper()
	_, err := io.WriteString(d.stdin, "\n")
	require.NoError(b, err)
	var c counts
	require.NoError(b, d.counted.Decode(&c))
	return c
}

// cleanUp waits for the background work.
func (d *daemon) cleanUp(b *testing.B) {
	b.Helper()
	cleaner, ok := d.Snapshotter.(snapshots.Cleaner)
	require.True(b, ok)
	require.NoError(b, cleaner.Cleanup(b.Context()))
}

// memory is a process's memory in KiB. File is the resident part of its mapped files, the program and the store. The
// kernel can drop it when memory is short.
type memory struct{ RSS, Anon, File, Peak int }

func (d *daemon) memory(b *testing.B) memory {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	require.NoError(b, err)
	var m memory
	for line := range bytes.Lines(status) {
		name, value, _ := strings.Cut(string(line), ":")
		field := map[string]*int{"VmRSS": &m.RSS, "RssAnon": &m.Anon, "RssFile": &m.File, "VmHWM": &m.Peak}[name]
		if field == nil {
			continue
		}
		_, err := fmt.Sscanf(value, "%d kB", field)
		require.NoError(b, err)
	}
	return m
}
