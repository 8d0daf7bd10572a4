package page_test

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/page"
)

func get(h http.Handler, method, host, path string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "http://"+host+path, nil)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestHandler(t *testing.T) {
	w := get(page.Handler(), http.MethodGet, "admin", "/")
	require.Equal(t, http.StatusOK, w.Code)
	require.Contains(t, w.Body.String(), "<title>thinsnap</title>")
	require.Contains(t, w.Header().Get("Content-Security-Policy"), "default-src 'self';")
	for file, kind := range map[string]string{"page.js": "text/javascript", "page.css": "text/css", "icon.svg": "image/svg+xml"} {
		w = get(page.Handler(), http.MethodGet, "admin", "/"+file)
		require.Equal(t, http.StatusOK, w.Code)
		require.Contains(t, w.Header().Get("Content-Type"), kind)
		require.Equal(t, "nosniff", w.Header().Get("X-Content-Type-Options"))
	}
	for _, path := range []string{"/v1/nothing", "/nothing", "/../page.go", "/static/page.js"} {
		require.Equal(t, http.StatusNotFound, get(page.Handler(), http.MethodGet, "admin", path).Code, path)
	}
}

// TestNothingFromElsewhere: no file of the page refers to another site, or has inline code or
// styles, which the Content-Security-Policy forbids.
func TestNothingFromElsewhere(t *testing.T) {
	require.NoError(t, fs.WalkDir(os.DirFS("static"), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile("static/" + name)
		text := strings.ReplaceAll(string(content), "http://www.w3.org/2000/svg", "")
		require.NotRegexp(t, `//[a-z0-9]|url\(|@import|innerHTML|eval\(| on[a-z]+="| style="|<style`, strings.ReplaceAll(text, "// ", ""), name)
		for _, path := range regexp.MustCompile(`get\("(v1/[a-z]+)`).FindAllStringSubmatch(text, -1) {
			require.Contains(t, page.Data(), "/"+path[1])
		}
		return err
	}))
}

// daemon is a transport to a daemon that records the requests.
type daemon struct {
	asked []string
	err   error
}

func (d *daemon) RoundTrip(r *http.Request) (*http.Response, error) {
	if d.err != nil {
		return nil, d.err
	}
	d.asked = append(d.asked, r.Method+" "+r.URL.RequestURI())
	w := httptest.NewRecorder()
	_, err := w.WriteString(`{"a": 1}`)
	return w.Result(), err
}

func TestProxy(t *testing.T) {
	d := &daemon{}
	p := page.Proxy(d, "secret")
	require.Contains(t, get(p, http.MethodGet, "127.0.0.1:1", "/secret/").Body.String(), "<title>thinsnap")
	require.Equal(t, http.StatusOK, get(p, http.MethodHead, "localhost", "/secret/page.js").Code)
	w := get(p, http.MethodGet, "[::1]:80", "/secret/v1/snapshots?labels=yes")
	require.JSONEq(t, `{"a": 1}`, w.Body.String())
	require.Equal(t, "nosniff", w.Header().Get("X-Content-Type-Options"))
	get(p, http.MethodGet, "localhost", "/secret/v1/info?labels=yes")
	require.Equal(t, []string{"GET /v1/snapshots?labels=no", "GET /v1/info"}, d.asked)
	require.Equal(t, "/secret/", get(p, http.MethodGet, "localhost", "/secret").Header().Get("Location"))

	d.asked = nil
	for _, refused := range []struct {
		method, host, path string
		code               int
	}{
		{http.MethodGet, "localhost", "/", http.StatusNotFound},
		{http.MethodGet, "localhost", "/v1/info", http.StatusNotFound},
		{http.MethodGet, "localhost", "/Secret/v1/info", http.StatusNotFound},
		{http.MethodGet, "localhost", "/secret/v1/check", http.StatusNotFound},
		{http.MethodGet, "localhost", "/secret/v1/info/", http.StatusNotFound},
		{http.MethodGet, "localhost", "/secret/metrics", http.StatusNotFound},
		{http.MethodGet, "localhost", "/secret/debug/pprof/", http.StatusNotFound},
		{http.MethodGet, "localhost", "/secret/x/../v1/check", http.StatusNotFound},
		{http.MethodPost, "localhost", "/secret/v1/info", http.StatusMethodNotAllowed},
		{http.MethodGet, "evil.example", "/secret/v1/info", http.StatusMisdirectedRequest},
		{http.MethodGet, "localhost.evil.example:80", "/secret/", http.StatusMisdirectedRequest},
		{http.MethodGet, "192.0.2.1", "/secret/", http.StatusMisdirectedRequest},
		{http.MethodGet, "127.0.0.1.evil.example", "/secret/", http.StatusMisdirectedRequest},
	} {
		require.Equal(t, refused.code, get(p, refused.method, refused.host, refused.path).Code, "%v", refused)
	}
	require.Empty(t, d.asked)

	d.err = &net.OpError{Op: "dial", Err: errors.New("connection refused")}
	w = get(p, http.MethodGet, "localhost", "/secret/v1/info")
	require.Equal(t, http.StatusBadGateway, w.Code)
	require.Contains(t, w.Body.String(), `"message":"dial: connection refused"`)

	d.err = context.Canceled
	require.Equal(t, http.StatusBadGateway, get(p, http.MethodGet, "localhost", "/secret/v1/info").Code)
}
