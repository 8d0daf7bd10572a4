package httpserver

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func start(t *testing.T, l net.Listener, s *Server) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	t.Cleanup(func() {
		require.NoError(t, s.http.Close())
		require.NoError(t, <-ended)
	})
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	return l
}

// Work on a request ends when the client is gone, but not at the limit for reading the request.
func TestAnswerOutlastsTheReadLimit(t *testing.T) {
	readDeadline := make(chan struct{})
	gone := make(chan struct{})
	l := listen(t)
	s := New(t.Context(), http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/gone" {
			<-r.Context().Done()
			close(gone)
			return
		}
		select {
		case <-readDeadline:
		case <-r.Context().Done():
		}
	}), 0)
	s.http.ReadTimeout = 50 * time.Millisecond
	start(t, l, s)
	time.AfterFunc(4*s.http.ReadTimeout, func() { close(readDeadline) })
	response, err := http.Get("http://" + l.Addr().String())
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	select {
	case <-readDeadline:
	default:
		require.Fail(t, "the request's context ended at the read limit")
	}

	conn, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	_, err = io.WriteString(conn, "GET /gone HTTP/1.1\r\nHost: localhost\r\n\r\n")
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	<-gone
}

func TestSlowHeadersAreCutOff(t *testing.T) {
	l := listen(t)
	s := New(t.Context(), http.NotFoundHandler(), 0)
	require.Equal(t, readTime, s.http.ReadTimeout)
	s.http.ReadTimeout = 50 * time.Millisecond
	start(t, l, s)
	conn, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	_, err = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: loc")
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, conn)
	require.NoError(t, err)
}

func TestRefuseRebinding(t *testing.T) {
	for _, c := range []struct {
		at, host string
		code     int
	}{
		{"127.0.0.1:9777", "127.0.0.1:9777", http.StatusOK},
		{"127.0.0.1:9777", "localhost", http.StatusOK},
		{"[::1]:9777", "[::1]:9777", http.StatusOK},
		{"127.0.0.1:9777", "evil.example:9777", http.StatusMisdirectedRequest},
		{"[::1]:9777", "evil.example", http.StatusMisdirectedRequest},
		{"192.0.2.1:9777", "node1.example:9777", http.StatusOK},
	} {
		at, err := net.ResolveTCPAddr("tcp", c.at)
		require.NoError(t, err)
		r := httptest.NewRequest(http.MethodGet, "http://"+c.host+"/metrics", nil)
		r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, net.Addr(at)))
		w := httptest.NewRecorder()
		RefuseRebinding(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})).ServeHTTP(w, r)
		require.Equal(t, c.code, w.Code, c)
	}
}

func TestLimitEach(t *testing.T) {
	l := LimitEach(listen(t), 2)
	defer l.Close()
	accepted := make(chan net.Conn, 3)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- conn
		}
	}()
	dial := func(from string) net.Conn {
		conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).Dial("tcp", l.Addr().String())
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	dial("127.0.0.2")
	first := <-accepted
	dial("127.0.0.2")
	<-accepted
	_, err := dial("127.0.0.2").Read(make([]byte, 1))
	require.Error(t, err, "a third one is closed")
	dial("127.0.0.3")
	<-accepted
	require.NoError(t, first.Close())
	require.Error(t, first.Close(), "closed twice, counted once")
	dial("127.0.0.2")
	<-accepted
	_, err = dial("127.0.0.2").Read(make([]byte, 1))
	require.Error(t, err)
}

func TestNetworks(t *testing.T) {
	at := func(address string) string {
		tcp, err := net.ResolveTCPAddr("tcp", address)
		require.NoError(t, err)
		return network(tcp).String()
	}
	require.Equal(t, "192.0.2.1/32", at("192.0.2.1:5"))
	require.Equal(t, "192.0.2.1/32", at("[::ffff:192.0.2.1]:5"))
	require.Equal(t, "2001:db8:1:2::/64", at("[2001:db8:1:2:3:4:5:6]:5"))
	require.Equal(t, "fe80::/64", at("[fe80::1%lo]:5"))
}

// The program has no HTTP server without these limits.
func TestNoOtherServers(t *testing.T) {
	for _, dir := range []string{"cmd", "devmapper", "internal", "metadata", "snapshotter"} {
		require.NoError(t, filepath.WalkDir("../../"+dir, func(path string, _ os.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || strings.Contains(path, "/httpserver/") {
				return err
			}
			text, err := os.ReadFile(path)
			require.NotRegexp(t, `http\.(Server\b|ListenAndServe|Serve\()`, string(text), path)
			return err
		}))
	}
}
