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
	// answerTime limits the backend's work on a request. Profiles have a parameter for their own
	// duration.
	answerTime = time.Minute
	// checkTime is the limit for a check, which reads all metadata of the pool.
	checkTime = 30 * time.Minute
	// trimTime is the limit for the trim of a snapshot. Discards may be slow.
	trimTime = 30 * time.Minute
	// diffTime is the limit for the comparison of a snapshot with its parent.
	diffTime = 30 * time.Minute
	// removeTime is the limit for the removal of a client with all its snapshots.
	removeTime = 30 * time.Minute
	// transferTime is what a client adds to these, for the way there and back.
	transferTime = 10 * time.Second
)

// hostName is the Host of the client's requests.
const hostName = "thinsnap"

// NewServer returns the admin socket's server for a backend. Uptimes count from daemon.StartedAt. The server also
// answers from the metrics and the recorder. ctx provides the logger of requests.
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
