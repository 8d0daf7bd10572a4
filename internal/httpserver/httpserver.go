// Package httpserver is thinsnap's only HTTP server. It limits the size of requests and the time
// that a client can hold a connection, and can refuse requests from other sites' pages.
package httpserver

import (
	"context"
	"errors"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"
)

const (
	// readTime limits the reading of a request: a line and a few headers.
	readTime = 10 * time.Second
	// idleTime is how long an idle connection stays open: other clients may wait for it.
	idleTime = 5 * time.Second
	// headerBytes has room for the longest key with every byte escaped.
	headerBytes = 128 << 10
)

// Server is an HTTP server whose requests have no body.
type Server struct{ http http.Server }

// New returns a server. Requests get ctx, which has the logger. answerTime limits the time from a
// request to the end of its answer; 0 means no limit.
func New(ctx context.Context, handler http.Handler, answerTime time.Duration) *Server {
	return &Server{http.Server{
		Handler: refuseBodies(handler), MaxHeaderBytes: headerBytes,
		ReadTimeout: readTime, WriteTimeout: answerTime, IdleTimeout: idleTime,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}}
}

// Serve serves the listener until Shutdown, then returns nil.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Shutdown closes the listener, waits for running requests until ctx ends, and then aborts them.
func (s *Server) Shutdown(ctx context.Context) error {
	if err := s.http.Shutdown(ctx); err != nil {
		return s.http.Close()
	}
	return nil
}

// ServeHTTP answers one request, as on a connection of the server.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.http.Handler.ServeHTTP(w, r) }

// refuseBodies closes the connection of a request with a body, which net/http would otherwise read
// before it answers. For other requests it removes the read deadline: net/http would end their
// context with it.
func refuseBodies(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		if r.ContentLength == 0 {
			_ = control.SetReadDeadline(time.Time{}) // fails for a test's recorder
			handler.ServeHTTP(w, r)
			return
		}
		_ = control.SetReadDeadline(time.Now())
		w.Header().Set("Connection", "close")
		http.Error(w, "requests must not have a body", http.StatusRequestEntityTooLarge)
	})
}

// RefuseWebPages refuses requests that another site's page makes a browser send. It answers 421 if
// the Host is neither loopback nor in hosts, the names of our own page (DNS rebinding). It answers
// 403 for another origin.
func RefuseWebPages(handler http.Handler, hosts ...string) http.Handler {
	handler = http.NewCrossOriginProtection().Handler(handler)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// CrossOriginProtection allows GET from other sites' pages, but some of our GETs take
		// minutes.
		from := r.Header.Get("Sec-Fetch-Site")
		switch {
		case !IsLoopbackHost(r.Host) && !slices.Contains(hosts, r.Host):
			http.Error(w, "the request's host is "+r.Host+": use "+strings.Join(append(hosts, "localhost"), " or "),
				http.StatusMisdirectedRequest)
		case from != "" && from != "none" && from != "same-origin":
			http.Error(w, "a page of another site sent the request", http.StatusForbidden)
		default:
			handler.ServeHTTP(w, r)
		}
	})
}

// RefuseRebinding answers 421 to a request to a loopback address whose Host is not loopback. For
// other addresses the Host cannot be checked, because the machine may have any name.
func RefuseRebinding(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		at, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		if ok && IsLoopbackHost(at.String()) && !IsLoopbackHost(r.Host) {
			http.Error(w, "the request's host is "+r.Host+": use localhost", http.StatusMisdirectedRequest)
			return
		}
		handler.ServeHTTP(w, r)
	})
}

// IsLoopbackHost reports whether a HOST or HOST:PORT always means this machine. Any port is
// allowed, because it may be forwarded.
func IsLoopbackHost(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return host == "localhost" || net.ParseIP(strings.Trim(host, "[]")).IsLoopback()
}
