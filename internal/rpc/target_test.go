package rpc

import (
	"context"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// empty is a snapshotter with no snapshots.
type empty struct{ snapshots.Snapshotter }

func (empty) Prepare(context.Context, string, string, ...snapshots.Opt) ([]mount.Mount, error) {
	return nil, nil
}

func (empty) View(context.Context, string, string, ...snapshots.Opt) ([]mount.Mount, error) {
	return nil, nil
}

func (empty) Commit(context.Context, string, string, ...snapshots.Opt) error { return nil }

func (empty) Remove(context.Context, string) error { return nil }

func (empty) Mounts(context.Context, string) ([]mount.Mount, error) { return nil, nil }

func (empty) Stat(context.Context, string) (snapshots.Info, error) {
	return snapshots.Info{}, errdefs.ErrNotFound
}

func (empty) Update(_ context.Context, info snapshots.Info, _ ...string) (snapshots.Info, error) {
	return info, nil
}

func (empty) Usage(context.Context, string) (snapshots.Usage, error) { return snapshots.Usage{}, nil }

func (empty) Walk(context.Context, snapshots.WalkFunc, ...string) error { return nil }

func (empty) Cleanup(context.Context) error { return nil }

// target is a server under attack.
type target struct {
	address string
	// heap and goroutines are from before the attack.
	heap       uint64
	goroutines int
}

func newTarget(t *testing.T) *target {
	t.Helper()
	captureLog(t, io.Discard)
	g := &target{address: filepath.Join(t.TempDir(), "s")}
	l, err := net.Listen("unix", g.address)
	require.NoError(t, err)
	server := NewServer(t.Context(), empty{}, nil, nil, &outcomes{}, NewLimits(1))
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		require.True(t, server.Stop(context.Background()))
		require.NoError(t, <-served)
	})
	g.requireServing(t)
	g.heap, g.goroutines = heap(), runtime.NumGoroutine()
	return g
}

func heap() uint64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}

// requireServing requires that other clients are served.
func (g *target) requireServing(t *testing.T) {
	t.Helper()
	conn := g.connect(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := snapshotsapi.NewSnapshotsClient(conn).Prepare(ctx, &snapshotsapi.PrepareSnapshotRequest{Key: "k"})
	require.NoError(t, err)
	require.NoError(t, conn.Close())
}

// requireLittleMemory requires that the server keeps little memory for its clients.
func (g *target) requireLittleMemory(t *testing.T) {
	t.Helper()
	require.Less(t, heap(), g.heap+64<<20)
}

// requireReleased requires that the server keeps nothing for closed connections.
func (g *target) requireReleased(t *testing.T) {
	t.Helper()
	g.requireServing(t)
	require.Eventually(t, func() bool { return runtime.NumGoroutine() <= g.goroutines+2 }, 10*time.Second, 10*time.Millisecond)
	// Pooled memory is freed by the second collection, a connection's memory with its last
	// goroutine.
	require.Eventually(t, func() bool { return heap() < g.heap+8<<20 }, 10*time.Second, 100*time.Millisecond)
}

func (g *target) connect(t *testing.T) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+g.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// write sends each message on its own connection, which stays open until hangUp is called. The
// server may close it at any time.
func (g *target) write(t *testing.T, messages [][]byte) (hangUp func()) {
	t.Helper()
	conns := make([]net.Conn, len(messages))
	var all sync.WaitGroup
	for i, message := range messages {
		conn, err := net.Dial("unix", g.address)
		require.NoError(t, err)
		conns[i] = conn
		all.Go(func() {
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
			_, _ = conn.Write(message)
		})
	}
	all.Wait()
	return func() {
		for _, conn := range conns {
			_ = conn.Close()
		}
	}
}
