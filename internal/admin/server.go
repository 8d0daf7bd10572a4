package admin

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/pprof"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errhttp"
	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/internal/check"
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
	backend = newBounded(backend)
	checked := func(report check.Report, err error) (check.Report, error) {
		if err == nil {
			metrics.Checked(report)
		}
		return report, err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /v1/info", answer(answerTime, func(ctx context.Context, _ *http.Request) (Info, error) {
		info, err := backend.Info(ctx)
		info.Daemon = daemon
		info.Daemon.UptimeSeconds = int64(time.Since(daemon.StartedAt).Seconds())
		return info, err
	}))
	mux.Handle("GET /v1/pool", answer(answerTime, func(ctx context.Context, _ *http.Request) (Pool, error) {
		return backend.Pool(ctx)
	}))
	mux.Handle("GET /v1/snapshots", answer(answerTime, func(ctx context.Context, r *http.Request) (SnapshotList, error) {
		snapshots, err := backend.Snapshots(ctx, r.URL.Query().Get("labels") != "no")
		slices.SortFunc(snapshots, func(a, b Snapshot) int { return strings.Compare(a.Key, b.Key) })
		return SnapshotList{Snapshots: noNull(snapshots)}, err
	}))
	mux.Handle("GET /v1/inspect", answer(answerTime, func(ctx context.Context, r *http.Request) (Inspection, error) {
		key, err := readKey(r)
		if err != nil {
			return Inspection{}, err
		}
		inspection, err := backend.Inspect(ctx, key)
		if inspection.Chain == nil {
			inspection.Chain = []string{}
		}
		return inspection, err
	}))
	mux.Handle("GET /v1/diff", answer(diffTime, func(ctx context.Context, r *http.Request) (Difference, error) {
		key, err := readKey(r)
		if err != nil {
			return Difference{}, err
		}
		difference, err := backend.Diff(ctx, key)
		difference.Changes = noNull(difference.Changes)
		return difference, err
	}))
	mux.Handle("GET /v1/activity", answer(answerTime, func(ctx context.Context, _ *http.Request) (Activity, error) {
		return activity(ctx, backend, metrics.calls)
	}))
	mux.Handle("GET /v1/history", answer(answerTime, func(context.Context, *http.Request) (History, error) {
		return recorder.history(), nil
	}))
	mux.Handle("GET /v1/check", answer(checkTime, func(ctx context.Context, _ *http.Request) (check.Report, error) {
		return checked(backend.Check(ctx, false))
	}))
	mux.Handle("POST /v1/check", answer(checkTime, func(ctx context.Context, _ *http.Request) (check.Report, error) {
		return checked(backend.Check(ctx, true))
	}))
	mux.Handle("POST /v1/pool/extend", answer(answerTime, func(ctx context.Context, r *http.Request) (Pool, error) {
		want, err := readExtension(r.URL.Query())
		if err != nil {
			return Pool{}, err
		}
		return backend.ExtendPool(ctx, want)
	}))
	mux.Handle("POST /v1/pool/trim", answer(trimTime, func(ctx context.Context, r *http.Request) (Trimming, error) {
		key, err := readKey(r)
		if err != nil {
			return Trimming{}, err
		}
		trimming, err := backend.Trim(ctx, key)
		metrics.Trimmed(trimming)
		return trimming, err
	}))
	mux.Handle("POST /v1/fork", answer(answerTime, func(ctx context.Context, r *http.Request) (Fork, error) {
		key, err := readKey(r)
		if err != nil {
			return Fork{}, err
		}
		return backend.Fork(ctx, key)
	}))
	mux.Handle("GET /v1/leftovers", answer(answerTime, func(ctx context.Context, _ *http.Request) (LeftoverList, error) {
		leftovers, err := backend.Leftovers(ctx)
		return LeftoverList{Leftovers: noNull(leftovers)}, err
	}))
	mux.Handle("POST /v1/leftovers/remove", answer(answerTime,
		func(ctx context.Context, r *http.Request) (LeftoverList, error) {
			id, err := strconv.ParseUint(r.URL.Query().Get("device_id"), 10, 32)
			if err != nil {
				return LeftoverList{}, errdefs.ErrInvalidArgument.WithMessage(
					"the parameter device_id must be the id of a leftover")
			}
			leftovers, err := backend.RemoveLeftover(ctx, uint32(id))
			return LeftoverList{Leftovers: noNull(leftovers)}, err
		}))
	for path, decide := range map[string]func(context.Context) (StoreClient, error){
		"accept": backend.AcceptClient, "reset": backend.ResetClient,
	} {
		call := func(ctx context.Context, _ *http.Request) (StoreClient, error) { return decide(ctx) }
		mux.Handle("POST /v1/client/"+path, answer(answerTime, call))
	}
	mux.Handle("GET /", page.Handler())
	mux.Handle("GET /metrics", metrics.Handler())
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return httpserver.New(ctx, httpserver.RefuseWebPages(mux, hostName), 0)
}

// noNull returns a list that is [] in JSON if it is empty.
func noNull[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

func readKey(r *http.Request) (string, error) {
	key := r.URL.Query().Get("key")
	if key == "" {
		return "", errdefs.ErrInvalidArgument.WithMessage("missing parameter: key")
	}
	return key, nil
}

func readExtension(query url.Values) (Extension, error) {
	var want Extension
	for name, bytes := range map[string]*uint64{"data_bytes": &want.Data, "metadata_bytes": &want.Metadata} {
		if !query.Has(name) {
			continue
		}
		var err error
		if *bytes, err = strconv.ParseUint(query.Get(name), 10, 63); err != nil || *bytes == 0 {
			return want, errdefs.ErrInvalidArgument.WithMessage("the parameter " + name +
				" must be a number of bytes greater than 0")
		}
	}
	if want == (Extension{}) {
		return want, errdefs.ErrInvalidArgument.WithMessage("missing parameter: data_bytes or metadata_bytes")
	}
	return want, nil
}

// activity is the answer of GET /v1/activity.
func activity(ctx context.Context, backend Backend, calls *calls) (Activity, error) {
	var a Activity
	info, err := backend.Info(ctx)
	if err != nil {
		return a, err
	}
	a.TrashTotal = info.Devices.Trash
	if a.Trash, err = backend.Trash(ctx, maxListed); err != nil {
		return a, err
	}
	if a.Trash == nil {
		a.Trash = []Removed{}
	}
	for i := range a.Trash {
		a.Trash[i].Key = cut(a.Trash[i].Key)
	}
	calls.report(&a)
	return a, nil
}

// answer returns a handler that writes the result of get, or its error, as JSON.
func answer[T any](limit time.Duration, get func(context.Context, *http.Request) (T, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), limit)
		defer cancel()
		result, err := get(ctx, r)
		var body any = result
		status := http.StatusOK
		if err != nil {
			status = errhttp.ToHTTP(err)
			body = problem{Message: err.Error(), PoolNotOpen: errors.Is(err, ErrNotOpen)}
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		if err := json.NewEncoder(w).Encode(body); err != nil {
			log.G(ctx).WithError(err).WithField("path", r.URL.Path).Debug("the client did not read the answer on " +
				"the admin socket")
		}
	})
}
