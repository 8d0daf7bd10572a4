package admin

import (
	"context"
	"fmt"
	"net/http"
	"net/http/pprof"
	"os"
	"time"

	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/internal/httpserver"
	"github.com/thinsnap/thinsnap/internal/page"
)

const (
	// answerTime limits the backend's work on most requests. A profile has its own duration, as a
	// parameter.
	answerTime = time.Minute
	// checkTime limits a check, which reads all metadata of the pool.
	checkTime = 30 * time.Minute
	// trimTime limits the trim of one snapshot. Discards may be slow.
	trimTime = 30 * time.Minute
	// diffTime limits the comparison of a snapshot with its parent.
	diffTime = 30 * time.Minute
	// removeTime limits the removal of a client with all its snapshots.
	removeTime = 30 * time.Minute
	// transferTime is how much longer a client waits, for the request and the answer to arrive.
	transferTime = 10 * time.Second
)

// hostName is the Host of the client's requests.
const hostName = "thinsnap"

// NewServer returns the server of the admin socket. Uptimes count from daemon.StartedAt. ctx has
// the logger of requests.
func NewServer(
	ctx context.Context, backend Backend, daemon Daemon, metrics *Metrics, recorder *Recorder,
) *httpserver.Server {
	daemon.PID = os.Getpid()
	mux := http.NewServeMux()
	for _, r := range routes(newBounded(backend), daemon, metrics, recorder) {
		mux.Handle(r.method+" "+r.path, r)
	}
	unknown := func(w http.ResponseWriter, r *http.Request) {
		write(r, w, nil, errdefs.ErrNotImplemented.WithMessage(fmt.Sprintf(
			"the daemon, thinsnap %s, has no %s %s: restart it if the command is of another version", daemon.Version, r.Method,
			r.URL.Path)))
	}
	mux.HandleFunc("GET /v1/", unknown)
	mux.HandleFunc("POST /v1/", unknown)
	mux.Handle("GET /", page.Handler())
	mux.Handle("GET /metrics", metrics.Handler())
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return httpserver.New(ctx, httpserver.RefuseWebPages(mux, hostName), 0)
}
