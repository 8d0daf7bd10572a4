package rpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/thinsnap/thinsnap/internal/clients"
)

// refusing is an admission that refuses and records all calls.
type refusing struct {
	mu    sync.Mutex
	calls []clients.Call
}

func (r *refusing) Admit(_ context.Context, call clients.Call) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, call)
	return fmt.Errorf("used by another: %w", errdefs.ErrFailedPrecondition)
}

// unreachable fails the test if a call reaches it.
type unreachable struct {
	empty
	t *testing.T
}

func (u unreachable) Walk(context.Context, snapshots.WalkFunc, ...string) error {
	u.t.Error("a list that was not admitted")
	return nil
}

func (u unreachable) Remove(context.Context, string) error {
	u.t.Error("a removal that was not admitted")
	return nil
}

// Every method is admitted with its process and proxy name. A refusal keeps its class and text.
func TestEachCallIsAdmitted(t *testing.T) {
	admission := &refusing{}
	address := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", address)
	require.NoError(t, err)
	server := NewServer(t.Context(), unreachable{t: t}, nil, admission, &outcomes{}, NewLimits(1))
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	conn, err := grpc.NewClient("unix://"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	sn := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "name")
	cleaner, ok := sn.(snapshots.Cleaner)
	require.True(t, ok)
	ctx := t.Context()
	calls := []func() error{
		func() error { _, err := sn.Prepare(ctx, "k", ""); return err },
		func() error { _, err := sn.View(ctx, "k", ""); return err },
		func() error { return sn.Commit(ctx, "n", "k") },
		func() error { return sn.Remove(ctx, "k") },
		func() error { _, err := sn.Mounts(ctx, "k"); return err },
		func() error { _, err := sn.Stat(ctx, "k"); return err },
		func() error { _, err := sn.Update(ctx, snapshots.Info{Name: "k"}); return err },
		func() error { _, err := sn.Usage(ctx, "k"); return err },
		func() error { return cleaner.Cleanup(ctx) },
		func() error {
			return sn.Walk(ctx, func(context.Context, snapshots.Info) error { return errors.New("an entry of a list") })
		},
	}
	for i, call := range calls {
		err := call()
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition, i)
		require.ErrorContains(t, err, "used by another")
	}
	require.Len(t, admission.calls, len(calls))
	for _, call := range admission.calls {
		require.Equal(t, "name", call.Proxy)
		require.Equal(t, os.Getpid(), call.Process.PID)
		program, err := os.Executable()
		require.NoError(t, err)
		require.Equal(t, program, call.Process.Program)
		require.NotZero(t, call.Process.StartTime)
		require.NotEmpty(t, call.Process.BootID)
	}
	require.NoError(t, conn.Close())
	require.True(t, server.Stop(ctx))
	require.NoError(t, <-served)
}

// failingWalk fails in the middle of a list.
type failingWalk struct {
	empty
	err error
}

func (f failingWalk) Walk(context.Context, snapshots.WalkFunc, ...string) error { return f.err }

// An error of List keeps its class, like those of other methods.
func TestErrorsOfAListKeepTheirClass(t *testing.T) {
	for _, class := range []error{errdefs.ErrUnavailable, errdefs.ErrDataLoss, errdefs.ErrInvalidArgument, errdefs.ErrInternal} {
		r := start(t, failingWalk{err: fmt.Errorf("walk: %w", class)})
		err := r.client.Walk(t.Context(), func(context.Context, snapshots.Info) error { return nil })
		require.ErrorIs(t, err, class)
		require.ErrorContains(t, err, "walk: ")
		require.True(t, r.server.Stop(t.Context()))
	}
}

// slowStat blocks in Stat until it is released.
type slowStat struct {
	empty
	inside  *atomic.Int64
	release chan struct{}
}

func (s slowStat) Stat(context.Context, string) (snapshots.Info, error) {
	s.inside.Add(1)
	<-s.release
	return snapshots.Info{}, errdefs.ErrNotFound
}

// Reads that hang with the root's disk leave room for other calls. Waiting reads end with their
// context.
func TestStuckReadsAreLimited(t *testing.T) {
	const more = 50
	slow := slowStat{inside: new(atomic.Int64), release: make(chan struct{})}
	r := start(t, slow)
	ctx, cancel := context.WithCancel(t.Context())
	results := make(chan error, maxReading+more)
	for range maxReading + more {
		go func() {
			_, err := r.client.Stat(ctx, "k")
			results <- err
		}()
	}
	require.Eventually(t, func() bool {
		return r.outcomes.begun.Load() == maxReading+more && slow.inside.Load() == maxReading
	}, time.Minute, time.Millisecond)
	_, err := r.client.Prepare(t.Context(), "k", "")
	require.NoError(t, err)
	cancel()
	for range maxReading + more {
		require.ErrorIs(t, <-results, context.Canceled)
	}
	require.EqualValues(t, maxReading, slow.inside.Load())
	close(slow.release)
	require.True(t, r.server.Stop(t.Context()))
}
