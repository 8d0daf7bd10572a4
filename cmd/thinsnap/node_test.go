package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestNodeMetrics: the installer's pod serves the daemon's metrics on its port. It serves nothing
// that changes or names snapshots.
func TestNodeMetrics(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := free.Addr().String()
	require.NoError(t, free.Close())
	ctx, stop := context.WithCancel(t.Context())
	ended, daemon := make(chan int), fakeDaemon(t)
	var errOut bytes.Buffer
	go func() {
		a := &app{out: io.Discard, errOut: &errOut}
		ended <- a.run(ctx, []string{"thinsnap", "--admin-address", daemon, "node", "metrics", "--listen", address})
	}()
	get := func(path string) (int, string) {
		answer, err := http.Get("http://" + address + path)
		if err != nil {
			return 0, ""
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		require.NoError(t, err)
		return answer.StatusCode, string(text)
	}
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
	require.Equal(t, exitOK, <-ended, errOut.String())
}
