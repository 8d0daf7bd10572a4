package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/httpserver"
	"github.com/thinsnap/thinsnap/internal/rpc"
	"github.com/thinsnap/thinsnap/internal/unixsocket"
)

// TestConnectionsAreLimited: connections beyond the limit wait until others end.
func TestConnectionsAreLimited(t *testing.T) {
	address := fakeDaemon(t)
	var open []net.Conn
	for range connections {
		conn, err := net.Dial("unix", address)
		require.NoError(t, err)
		open = append(open, conn)
	}
	answered := make(chan error, 1)
	go func() {
		_, err := admin.NewClient(address).Pool(t.Context())
		answered <- err
	}()
	select {
	case err := <-answered:
		require.Fail(t, "one connection more was served", "%v", err)
	case <-time.After(100 * time.Millisecond):
	}
	require.NoError(t, open[0].Close())
	require.NoError(t, <-answered)
	for _, conn := range open[1:] {
		require.NoError(t, conn.Close())
	}
}

// TestLongestKeyCanBeInspected: the longest key fits into a request, even with all bytes escaped.
func TestLongestKeyCanBeInspected(t *testing.T) {
	address := fakeDaemon(t)
	_, err := admin.NewClient(address).Inspect(t.Context(), strings.Repeat("\xff", 32760))
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	_, err = admin.NewClient(address).Inspect(t.Context(), strings.Repeat("\xff", 128<<10))
	require.ErrorContains(t, err, "431")
}

// TestBodiesHoldNoConnection: each listener disconnects a client that announces a body and does not
// send it, and serves others.
func TestBodiesHoldNoConnection(t *testing.T) {
	notified := systemd(t)
	cfg := testConfig(t)
	cfg.MetricsAddress = freePort(t)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	var closed atomic.Int32
	go func() { ended <- serve(ctx, cfg, fakeOpen(&fakeSnapshotter{}, &closed)) }()
	require.Equal(t, ready, told(t, notified))
	page, stopPage := startPage(t, cfg.AdminAddress)
	pageAt, err := url.Parse(page)
	require.NoError(t, err)

	for _, held := range []struct{ network, address, path string }{
		{"unix", cfg.AdminAddress, "/v1/pool"}, {"tcp", cfg.MetricsAddress, "/metrics"}, {"tcp", pageAt.Host, pageAt.Path},
	} {
		client := http.Client{Timeout: time.Minute, Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, held.network, held.address)
			},
		}}
		limit := time.Now().Add(time.Minute)
		for _, header := range []string{"Content-Length: 1000", "Transfer-Encoding: chunked"} {
			var open []net.Conn
			for range connections {
				conn, err := net.Dial(held.network, held.address)
				require.NoError(t, err)
				open = append(open, conn)
				_, err = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: localhost\r\n%s\r\n\r\n", held.path, header)
				require.NoError(t, err)
			}
			for _, conn := range open {
				require.NoError(t, conn.SetReadDeadline(limit))
				_, err = io.Copy(io.Discard, conn)
				require.NotErrorIs(t, err, os.ErrDeadlineExceeded, "%s still holds the connection after a minute", held.address)
				require.NoError(t, conn.Close())
			}
			response, err := client.Get("http://localhost" + held.path)
			require.NoError(t, err)
			require.NoError(t, response.Body.Close())
			require.Equal(t, http.StatusOK, response.StatusCode)
		}
	}
	stopPage()
	stop()
	require.NoError(t, <-ended)
}

// TestMetricsForTheNetworkAreLogged: an address that other machines can reach is logged.
func TestMetricsForTheNetworkAreLogged(t *testing.T) {
	for address, open := range map[string]bool{"127.0.0.1:0": false, "[::1]:0": false, ":0": true, "0.0.0.0:0": true} {
		var logged bytes.Buffer
		old := log.L.Logger.Out
		log.L.Logger.SetOutput(&logged)
		s := newServers(func(string) {}, 0)
		err := s.startTCP(t.Context(), address, httpserver.New(t.Context(), http.NotFoundHandler(), 0))
		log.L.Logger.SetOutput(old)
		require.NoError(t, err)
		s.stop(t.Context())
		require.Equal(t, open, strings.Contains(logged.String(), "all who reach this address can read the metrics"), address)
	}
}

// TestOneProcessDoesNotKeepOthersOut: connections of a process to containerd's socket beyond its
// limit are closed, counted and logged once.
func TestOneProcessDoesNotKeepOthersOut(t *testing.T) {
	var written bytes.Buffer
	log.L.Logger.SetOutput(&written)
	t.Cleanup(func() { log.L.Logger.SetOutput(os.Stderr) })
	address := filepath.Join(t.TempDir(), "s")
	var limited atomic.Int32
	s := newServers(func(at string) {
		if at == address {
			limited.Add(1)
		}
	}, 0)
	l, err := unixsocket.Listen(t.Context(), address)
	require.NoError(t, err)
	s.start(l, snapshotServer{rpc.NewServer(t.Context(), &fakeSnapshotter{}, nil, nil, admin.NewMetrics(fakeReports{}, "", ""),
		rpc.NewLimits(1))})
	t.Cleanup(func() { s.stop(context.Background()) })

	// closed reports whether the server has closed a connection; it greets those that it serves.
	closed := func(conn net.Conn) bool {
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(time.Minute)))
		_, err := conn.Read(make([]byte, 1))
		require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
		return err != nil
	}
	dial := func() net.Conn {
		conn, err := net.Dial("unix", address)
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	var open []net.Conn
	for range connectionsOfProcess {
		open = append(open, dial())
		require.False(t, closed(open[len(open)-1]))
	}
	for range 3 {
		require.True(t, closed(dial()))
	}
	require.EqualValues(t, 3, limited.Load())
	other := exec.Command(os.Args[0], "-test.run", "TestOtherProcess$")
	other.Env = append(os.Environ(), "THINSNAP_TEST_ADDRESS="+address)
	out, err := other.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NoError(t, open[0].Close())
	require.Eventually(t, func() bool { return !closed(dial()) }, time.Minute, time.Millisecond)
	s.stop(t.Context())
	require.Equal(t, 1, strings.Count(written.String(), "too many are open from process"), written.String())
}

// TestOtherProcess is the other process of TestOneProcessDoesNotKeepOthersOut.
func TestOtherProcess(t *testing.T) {
	address := os.Getenv("THINSNAP_TEST_ADDRESS")
	if address == "" {
		return
	}
	conn, err := net.Dial("unix", address)
	require.NoError(t, err)
	_, err = conn.Read(make([]byte, 1))
	require.NoError(t, err, "it is greeted")
	require.NoError(t, conn.Close())
}

// TestCloseOfAFullListener: an Accept that waits for a place ends with the listener, and takes no
// place of an open connection.
func TestCloseOfAFullListener(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	below, err := net.Listen("unix", path)
	require.NoError(t, err)
	l := limitConnections(below, 1, 0, func(string) {})
	client, err := net.Dial("unix", path)
	require.NoError(t, err)
	defer client.Close()
	conn, err := l.Accept()
	require.NoError(t, err)
	accepted := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		accepted <- err
	}()
	require.NoError(t, l.Close())
	require.ErrorIs(t, <-accepted, net.ErrClosed)
	require.NoError(t, conn.Close(), "Close must not wait for a place")
}
