package admin_test

import (
	"context"
	"net"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/admin"
)

// counting counts the changes that were requested.
type counting struct {
	fakeBackend
	changes int
}

func (c *counting) ExtendPool(ctx context.Context, want admin.Extension) (admin.Pool, error) {
	c.changes++
	return c.fakeBackend.ExtendPool(ctx, want)
}

// TestWebPagesAreRefused: the page of another site, in a browser that reaches the socket by a
// forwarded port, can change and read nothing.
func TestWebPagesAreRefused(t *testing.T) {
	backend := &counting{}
	address := serve(t, backend, admin.NewMetrics(backend, "", ""))
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", address)
	}}}
	status := func(method, url string, headers ...string) int {
		r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
		require.NoError(t, err)
		for i := 0; i < len(headers); i += 2 {
			r.Header.Set(headers[i], headers[i+1])
		}
		response, err := client.Do(r)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		return response.StatusCode
	}
	const extend = "/v1/pool/extend?data_bytes=1099511627776"
	for _, from := range [][]string{
		{"Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site"},
		{"Origin", "https://evil.example"},
		{"Origin", "null"},
		{"Origin", "http://localhost:3000", "Sec-Fetch-Site", "same-site"},
	} {
		require.Equal(t, http.StatusForbidden, status(http.MethodPost, "http://localhost:8080"+extend, from...), from)
	}
	for _, path := range []string{"/v1/check", "/debug/pprof/profile?seconds=1", "/v1/snapshots", "/"} {
		require.Equal(t, http.StatusForbidden, status(http.MethodGet, "http://localhost:8080"+path, "Sec-Fetch-Site", "cross-site"), path)
		require.Equal(t, http.StatusMisdirectedRequest, status(http.MethodGet, "http://evil.example:8080"+path), path)
	}
	require.Equal(t, http.StatusMisdirectedRequest, status(http.MethodPost, "http://evil.example:8080"+extend, "Origin", "http://evil.example:8080"))
	require.Zero(t, backend.changes)

	require.Equal(t, http.StatusOK, status(http.MethodGet, "http://localhost:8080/", "Sec-Fetch-Site", "none"), "typed into the browser")
	require.Equal(t, http.StatusOK, status(http.MethodGet, "http://127.0.0.1:8080/v1/info", "Sec-Fetch-Site", "same-origin"), "by the page itself")
	require.Equal(t, http.StatusOK, status(http.MethodPost, "http://localhost"+extend), "by curl")
	_, err := admin.NewClient(address).ExtendPool(t.Context(), admin.Extension{Data: 1})
	require.NoError(t, err)
	require.Equal(t, 2, backend.changes)
}
