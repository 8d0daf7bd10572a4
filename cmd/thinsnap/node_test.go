package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/urfave/cli/v3"

	"github.com/thinsnap/thinsnap/internal/admin"
)

// TestNodeRuntimes: a repeated --runtime adds to the runtimes, as with `thinsnap setup`.
func TestNodeRuntimes(t *testing.T) {
	for _, name := range []string{"install", "configure"} {
		for _, test := range []struct{ given, passed []string }{
			{nil, nil},
			{[]string{"--runtime", ""}, nil},
			{[]string{"--runtime", "kata,kata-fc", "--runtime", "kata-qemu"}, []string{"--runtime", "kata,kata-fc,kata-qemu"}},
		} {
			node := new(app).nodeCommand()
			var passed []string
			node.Command(name).Action = func(_ context.Context, c *cli.Command) error {
				passed = setupArgs(c)
				return nil
			}
			require.NoError(t, node.Run(t.Context(), append([]string{"node", name}, test.given...)))
			require.Equal(t, test.passed, passed, name)
		}
	}
}

// TestNodeMetrics: the installer's pod serves the daemon's metrics on its port. It serves nothing
// that changes or names snapshots.
func TestNodeMetrics(t *testing.T) {
	get, stop := nodeMetrics(t, fakeReports{})
	var text string
	require.Eventually(t, func() bool {
		var status int
		status, text = get("/metrics")
		return status == http.StatusOK
	}, 30*time.Second, 10*time.Millisecond)
	require.Contains(t, text, "thinsnap_pool_up 1\n")
	for _, path := range []string{"/v1/info", "/v1/snapshots", "/", "/metrics/../v1/info"} {
		status, _ := get(path)
		require.Equal(t, http.StatusNotFound, status, path)
	}
	stop()
}

// slowReports is a daemon that waits before it describes itself.
type slowReports struct {
	fakeReports
	asked  chan struct{} // one receive for each question
	answer chan struct{}
}

func (s slowReports) Info(ctx context.Context) (admin.Info, error) {
	s.asked <- struct{}{}
	<-s.answer
	return s.fakeReports.Info(ctx)
}

// TestNodeMetricsStop: a scrape that runs at the end of the pod is answered.
func TestNodeMetricsStop(t *testing.T) {
	slow := slowReports{asked: make(chan struct{}, 100), answer: make(chan struct{})}
	get, stop := nodeMetrics(t, slow)
	status := make(chan int)
	go func() {
		for { // until the port is open
			if got, _ := get("/metrics"); got != 0 {
				status <- got
				return
			}
		}
	}()
	<-slow.asked
	stopped := make(chan struct{})
	go func() { stop(); close(stopped) }()
	select {
	case <-stopped:
		require.Fail(t, "ended during a scrape")
	case got := <-status:
		require.Fail(t, "the scrape ended early", "status %d", got)
	case <-time.After(100 * time.Millisecond):
	}
	close(slow.answer)
	require.Equal(t, http.StatusOK, <-status)
	<-stopped
}

// nodeMetrics starts the command. get returns 0 if there was no answer, and stop waits for the end.
func nodeMetrics(t *testing.T, reports admin.Backend) (get func(path string) (int, string), stop func()) {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := free.Addr().String()
	require.NoError(t, free.Close())
	ctx, cancel := context.WithCancel(t.Context())
	ended, daemon := make(chan int), fakeDaemonOf(t, reports)
	var errOut bytes.Buffer
	go func() {
		a := &app{out: io.Discard, errOut: &errOut}
		ended <- a.run(ctx, []string{"thinsnap", "--admin-address", daemon, "node", "metrics", "--listen", address})
	}()
	get = func(path string) (int, string) {
		answer, err := http.Get("http://" + address + path)
		if err != nil {
			return 0, ""
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		if err != nil {
			return 0, ""
		}
		return answer.StatusCode, string(text)
	}
	return get, func() {
		cancel()
		assert.Equal(t, exitOK, <-ended, errOut.String())
	}
}
