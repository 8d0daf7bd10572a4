package rpc

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/thinsnap/thinsnap/snapshotter/calllog"
)

// fakeSnapshotter has only the methods that the tests call; prepare may be set.
type fakeSnapshotter struct {
	snapshots.Snapshotter
	prepare func(ctx context.Context) error
}

func (f *fakeSnapshotter) Prepare(ctx context.Context, key, _ string, _ ...snapshots.Opt) ([]mount.Mount, error) {
	log.G(ctx).Info("inside")
	calllog.SetDevice(ctx, "/dev/mapper/thinsnap-snap-1")
	if f.prepare != nil {
		if err := f.prepare(ctx); err != nil {
			return nil, err
		}
	}
	return []mount.Mount{{Type: "ext4", Source: "/dev/mapper/thinsnap-snap-1"}}, nil
}

func (f *fakeSnapshotter) Stat(_ context.Context, key string) (snapshots.Info, error) {
	return snapshots.Info{}, fmt.Errorf("snapshot %s: %w", key, errdefs.ErrNotFound)
}

func (f *fakeSnapshotter) Remove(context.Context, string) error { panic("broken") }

func (f *fakeSnapshotter) Walk(context.Context, snapshots.WalkFunc, ...string) error {
	panic("broken walk")
}

// outcomes is an Observer that records outcomes.
type outcomes struct {
	mu    sync.Mutex
	ended []string
	begun atomic.Int64
}

func (o *outcomes) Begin(method, _ string) func(string) time.Duration {
	o.begun.Add(1)
	return func(outcome string) time.Duration {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.ended = append(o.ended, method+" "+outcome)
		return 0
	}
}

func (o *outcomes) all() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]string(nil), o.ended...)
}

// lines are the lines of a log.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) parsed(t *testing.T) []map[string]any {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	var parsed []map[string]any
	decoder := json.NewDecoder(bytes.NewReader(l.text.Bytes()))
	for decoder.More() {
		var line map[string]any
		require.NoError(t, decoder.Decode(&line))
		parsed = append(parsed, line)
	}
	return parsed
}

// rig is a server on a real socket, with containerd's client.
type rig struct {
	server   *Server
	client   snapshots.Snapshotter
	outcomes *outcomes
	lines    *lines
	address  string
	served   chan error
}

func start(t *testing.T, sn snapshots.Snapshotter) *rig {
	t.Helper()
	return startWithin(t, sn, NewLimits(1))
}

func startWithin(t *testing.T, sn snapshots.Snapshotter, limits *Limits) *rig {
	t.Helper()
	r := &rig{outcomes: &outcomes{}, lines: &lines{}, served: make(chan error, 1)}
	captureLog(t, r.lines)
	r.server = NewServer(t.Context(), sn, nil, nil, r.outcomes, limits)
	r.address = filepath.Join(t.TempDir(), "s.sock")
	l, err := net.Listen("unix", r.address)
	require.NoError(t, err)
	go func() { r.served <- r.server.Serve(l) }()
	conn, err := grpc.NewClient("unix://"+r.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	r.client = proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "thinsnap")
	return r
}

// captureLog makes the process's logger write JSON to w, at all levels, until the test ends.
func captureLog(t *testing.T, w io.Writer) {
	t.Helper()
	logger := log.L.Logger
	out, formatter, level := logger.Out, logger.Formatter, logger.GetLevel()
	t.Cleanup(func() {
		logger.SetOutput(out)
		logger.SetFormatter(formatter)
		logger.SetLevel(level)
	})
	logger.SetOutput(w)
	require.NoError(t, log.SetFormat(log.JSONFormat))
	logger.SetLevel(log.DebugLevel)
}

func TestCalls(t *testing.T) {
	r := start(t, &fakeSnapshotter{})
	mounts, err := r.client.Prepare(t.Context(), "k1", "p1")
	require.NoError(t, err)
	require.Len(t, mounts, 1)
	_, err = r.client.Stat(t.Context(), "k2")
	require.ErrorIs(t, err, errdefs.ErrNotFound)

	require.True(t, r.server.Stop(t.Context()))
	require.NoError(t, <-r.served)
	require.Equal(t, []string{"Prepare OK", "Stat NotFound"}, r.outcomes.all())

	got := r.lines.parsed(t)
	require.Len(t, got, 3)
	require.Equal(t, "inside", got[0]["msg"])
	require.Equal(t, "k1", got[0]["key"], "the snapshotter's own lines have the key")
	require.Equal(t, "info", got[1]["level"])
	for field, want := range map[string]any{
		"method": "Prepare", "key": "k1", "parent": "p1", "device": "/dev/mapper/thinsnap-snap-1", "outcome": "OK",
	} {
		require.Equal(t, want, got[1][field], field)
	}
	require.NotEmpty(t, got[1]["duration"])
	require.Equal(t, "debug", got[2]["level"])
	require.Contains(t, got[2]["error"], "k2")
}

// Further calls wait, a waiting call that is cancelled does not run, and calls that only read do not wait.
func TestRunningCallsAreLimited(t *testing.T) {
	const more = 50
	var inside, most, ran atomic.Int64
	full, release := make(chan struct{}), make(chan struct{})
	r := start(t, &fakeSnapshotter{prepare: func(context.Context) error {
		ran.Add(1)
		if now := inside.Add(1); now == maxRunning {
			close(full)
		} else if now > maxRunning {
			most.Store(now)
		}
		<-release
		inside.Add(-1)
		return nil
	}})
	waiting, giveUp := context.WithCancel(t.Context())
	results := make(chan error, maxRunning+more)
	prepare := func(ctx context.Context, n int) {
		_, err := r.client.Prepare(ctx, fmt.Sprint(n), "")
		results <- err
	}
	for n := range maxRunning {
		go prepare(t.Context(), n)
	}
	<-full
	for n := range more {
		go prepare(waiting, n)
	}
	require.Eventually(t, func() bool { return r.outcomes.begun.Load() == maxRunning+more }, time.Minute, time.Millisecond)
	_, err := r.client.Stat(t.Context(), "k")
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	giveUp()
	for range more {
		require.ErrorIs(t, <-results, context.Canceled)
	}
	require.Eventually(t, func() bool { return len(r.outcomes.all()) == more+1 }, time.Minute, time.Millisecond)
	close(release)
	for range maxRunning {
		require.NoError(t, <-results)
	}
	require.EqualValues(t, maxRunning, ran.Load())
	require.Zero(t, most.Load())
	require.True(t, r.server.Stop(t.Context()))
}

// Two of three clients make more calls than may run, and none of them ends. The third is served, and all
// clients together have no more than maxRunning running calls.
func TestClientsHaveReservedCalls(t *testing.T) {
	var inside, begun atomic.Int64
	release := make(chan struct{})
	limits := NewLimits(3)
	stuck := &fakeSnapshotter{prepare: func(context.Context) error {
		inside.Add(1)
		<-release
		return nil
	}}
	results := make(chan error, 2*maxRunning)
	var servers []*Server
	for range 2 {
		r := startWithin(t, stuck, limits)
		servers = append(servers, r.server)
		for n := range maxRunning {
			go func() {
				_, err := r.client.Prepare(t.Context(), fmt.Sprint(n), "")
				results <- err
			}()
		}
		require.Eventually(t, func() bool { return r.outcomes.begun.Load() == maxRunning }, time.Minute, time.Millisecond)
	}
	const reserved = maxRunning / 2 / 3
	require.Eventually(t, func() bool { return inside.Load() == maxRunning/2+2*reserved }, time.Minute, time.Millisecond)
	other := startWithin(t, &fakeSnapshotter{prepare: func(context.Context) error {
		begun.Add(1)
		return nil
	}}, limits)
	for n := range 2 * reserved {
		_, err := other.client.Prepare(t.Context(), fmt.Sprint(n), "")
		require.NoError(t, err)
	}
	require.EqualValues(t, 2*reserved, begun.Load())
	require.EqualValues(t, maxRunning/2+2*reserved, inside.Load())
	close(release)
	for range 2 * maxRunning {
		require.NoError(t, <-results)
	}
	for _, server := range append(servers, other.server) {
		require.True(t, server.Stop(t.Context()))
	}
}

// Each client has a reserved call, however many clients there are.
func TestReservedCallsOfManyClients(t *testing.T) {
	limits := NewLimits(1000)
	running, reading := limits.forServer()
	for range maxReading {
		for _, s := range []share{running, reading} {
			select {
			case s.shared <- struct{}{}:
			default:
			}
		}
	}
	for _, s := range []share{running, reading} {
		leave, err := s.enter(t.Context())
		require.NoError(t, err)
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = s.enter(ended)
		require.Equal(t, codes.Canceled, status.Code(err))
		leave()
		_, err = s.enter(ended)
		require.Equal(t, codes.Canceled, status.Code(err), "a call that was cancelled does not run")
		leave, err = s.enter(t.Context())
		require.NoError(t, err)
		leave()
	}
}

// A list that exceeds one message is sent in several.
func TestListOfLargeSnapshots(t *testing.T) {
	const count = 30
	large := map[string]string{"l": strings.Repeat("x", 1<<20)}
	r := start(t, &largeSnapshotter{count: count, labels: large})
	var names []string
	require.NoError(t, r.client.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
		names = append(names, info.Name)
		return nil
	}))
	require.Len(t, names, count)
	require.IsIncreasing(t, names)
	require.True(t, r.server.Stop(t.Context()))
}

// largeSnapshotter has this number of snapshots, each with these labels.
type largeSnapshotter struct {
	snapshots.Snapshotter
	count  int
	labels map[string]string
}

func (l *largeSnapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, _ ...string) error {
	for n := range l.count {
		info := snapshots.Info{Kind: snapshots.KindActive, Name: fmt.Sprintf("%03d", n), Labels: l.labels}
		if err := fn(ctx, info); err != nil {
			return err
		}
	}
	return nil
}

func TestPanicIsAnError(t *testing.T) {
	r := start(t, &fakeSnapshotter{})
	err := r.client.Remove(t.Context(), "k")
	require.ErrorIs(t, err, errdefs.ErrInternal)
	require.ErrorContains(t, err, "broken")
	err = r.client.Walk(t.Context(), func(context.Context, snapshots.Info) error { return nil })
	require.ErrorContains(t, err, "broken walk")
	_, err = r.client.Prepare(t.Context(), "k", "")
	require.NoError(t, err, "the server still works")

	require.True(t, r.server.Stop(t.Context()))
	require.Equal(t, []string{"Remove Internal", "List Internal", "Prepare OK"}, r.outcomes.all())
	require.Contains(t, r.lines.parsed(t)[0]["stack"], "fakeSnapshotter")
}

// A running call ends normally.
func TestStopWaitsForRunningCalls(t *testing.T) {
	begun, release := make(chan struct{}), make(chan struct{})
	r := start(t, &fakeSnapshotter{prepare: func(context.Context) error {
		close(begun)
		<-release
		return nil
	}})
	result := make(chan error, 1)
	go func() {
		_, err := r.client.Prepare(t.Context(), "k", "")
		result <- err
	}()
	<-begun
	stopped := make(chan bool, 1)
	go func() { stopped <- r.server.Stop(t.Context()) }()
	require.Eventually(t, func() bool {
		conn, err := net.Dial("unix", r.address)
		return err != nil || conn.Close() != nil
	}, time.Minute, time.Millisecond, "no new calls are taken")
	require.Empty(t, stopped, "it stopped during a running call")
	close(release)
	require.NoError(t, <-result)
	require.True(t, <-stopped)
	require.NoError(t, <-r.served)
}

// A call that respects its context ends, and Stop returns true.
func TestStopCancelsAfterTimeout(t *testing.T) {
	begun := make(chan struct{})
	r := start(t, &fakeSnapshotter{prepare: func(ctx context.Context) error {
		close(begun)
		<-ctx.Done()
		return ctx.Err()
	}})
	result := make(chan error, 1)
	go func() {
		_, err := r.client.Prepare(t.Context(), "k", "")
		result <- err
	}()
	<-begun
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	require.True(t, r.server.Stop(ctx))
	require.Error(t, <-result)
	require.Equal(t, []string{"Prepare Canceled"}, r.outcomes.all())
}

// A client cannot fill the disk with the log.
func TestLongKeysAreShortenedInLog(t *testing.T) {
	r := start(t, &fakeSnapshotter{})
	_, err := r.client.Stat(t.Context(), strings.Repeat("k", 1<<20))
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	require.True(t, r.server.Stop(t.Context()))
	r.lines.mu.Lock()
	defer r.lines.mu.Unlock()
	require.Less(t, r.lines.text.Len(), 8<<10)
	require.Contains(t, r.lines.text.String(), "k… (1048576 bytes)")
}
