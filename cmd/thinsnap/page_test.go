package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/admin"
)

// startPage runs the command page for a daemon, and returns the printed URL.
func startPage(t *testing.T, adminAddress string) (url string, stop func()) {
	t.Helper()
	read, write, err := os.Pipe()
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	go func() {
		a := &app{out: write, errOut: io.Discard}
		ended <- a.run(ctx, []string{"thinsnap", "--admin-address", adminAddress, "page"})
	}()
	line, err := bufio.NewReader(read).ReadString('\n')
	require.NoError(t, err)
	return strings.TrimSpace(line), func() {
		cancel()
		require.Equal(t, exitOK, <-ended)
		require.NoError(t, read.Close())
		require.NoError(t, write.Close())
	}
}

// TestPage: until it is stopped, the command serves the page and the daemon's data to users with
// the URL.
func TestPage(t *testing.T) {
	url, stop := startPage(t, fakeDaemon(t))
	require.Regexp(t, `^http://127\.0\.0\.1:\d+/[A-Z2-7]{26}/$`, url)

	get := func(url string) (int, string) {
		response, err := http.Get(url)
		require.NoError(t, err)
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		return response.StatusCode, string(body)
	}
	code, body := get(url)
	require.Equal(t, http.StatusOK, code)
	require.Contains(t, body, "<title>thinsnap</title>")
	_, body = get(url + "v1/info")
	var info admin.Info
	require.NoError(t, json.Unmarshal([]byte(body), &info))
	require.Equal(t, uint64(300<<20), info.Pool.Data.Used)
	_, body = get(url + "v1/snapshots?labels=no")
	require.Contains(t, body, layerKey)
	code, _ = get(url[:len(url)-3] + "/v1/info")
	require.Equal(t, http.StatusNotFound, code, "an incomplete token")

	stop()
}

func TestPageRefusesNetworkAddresses(t *testing.T) {
	address := fakeDaemon(t)
	for _, listen := range []string{"0.0.0.0:0", ":8080", "192.0.2.1:80", "localhost:80", "127.0.0.1", "nonsense"} {
		got := try(t, false, backend{}, "--admin-address", address, "page", "--listen", listen)
		require.Equal(t, exitUsage, got.code, listen)
	}
	require.Equal(t, exitUnavailable, try(t, false, backend{}, "--admin-address", address+"x", "page").code)
}
