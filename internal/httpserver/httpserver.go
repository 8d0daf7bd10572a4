// Package httpserver is the HTTP server of all of thinsnap's listeners. It bounds how long a client
// can hold a connection, and how large a request is, and refuses what a web page sends.
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
	// readTime limits the reading of a request, which is a line and a few headers.
	readTime = 10 * time.Second
	// idleTime is the time after which an idle connection is closed: others may wait for it.
	idleTime = 5 * time.Second
	// headerBytes has room for the longest key with every byte escaped.
	headerBytes = 128 << 10
)

// Server is an HTTP server whose requests have no body.
type Server struct{ http http.Server }

// New returns a server. Requests get ctx, which provides the logger. answerTime limits the time
// from a request to the end of its answer; 0 is no limit.
func New(ctx context.Context, handler http.Handler, answerTime time.Duration) *Server {
	return &Server{http.Server{
		Handler: refuseBodies(handler), MaxHeaderBytes: headerBytes,
		ReadTimeout: readTime, WriteTimeout: answerTime, IdleTimeout: idleTime,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}}
}

// Serve serves the listener until Shutdown, and then returns nil.
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

// ServeHTTP answers one request as on a connection of the server.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.http.Handler.ServeHTTP(w, r) }

// refuseBodies closes the connection of a request with a body: net/http would wait for the body
// before it sends the answer. For other requests it takes the limit of their reading back: net/http
// would end their context when that is over.
func refuseBodies(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		if r.ContentLength == 0 {
			_ = control.SetReadDeadline(time.Time{}) // a recorder of a test has none
			handler.ServeHTTP(w, r)
			return
		}
		_ = control.SetReadDeadline(time.Now())
		w.Header().Set("Connection", "close")
		http.Error(w, "a request has no body here", http.StatusRequestEntityTooLarge)
	})
}

// RefuseWebPages refuses requests that a page of another site makes a browser send: for a Host that
// is neither a name of this machine's loopback nor in hosts (the page's own name, by DNS rebinding),
// with 421, and from another origin, with 403.
func RefuseWebPages(handler http.Handler, hosts ...string) http.Handler {
	handler = http.NewCrossOriginProtection().Handler(handler)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// CrossOriginProtection lets other sites' pages send a GET: some of ours take minutes.
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

// RefuseRebinding refuses requests to a loopback address whose Host is not a name of loopback, with
// 421. What a request to another address names cannot be checked: the machine may have any name.
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

// IsLoopbackHost returns true for a HOST or HOST:PORT that always means this machine. The port may be
// any: it may be forwarded.
func IsLoopbackHost(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return host == "localhost" || net.ParseIP(strings.Trim(host, "[]")).IsLoopback()
}
