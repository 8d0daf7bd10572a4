package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errhttp"
	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/internal/check"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/metadata"
)

// route is a method and a path of the API. docs/api.md is generated from all routes.
type route struct {
	method, path string
	doc          string // whole sentences, for docs/api.md
	params       []param
	limit        time.Duration // limits the backend's work
	answer       reflect.Type
	call         func(context.Context, url.Values) (any, error)
}

type param struct{ name, doc string }

// newRoute returns the route of a pattern "METHOD PATH".
func newRoute[T any](
	pattern string, limit time.Duration, doc string, params []param, call func(context.Context, url.Values) (T, error),
) route {
	method, path, _ := strings.Cut(pattern, " ")
	return route{
		method: method, path: path, doc: doc, params: params, limit: limit, answer: reflect.TypeFor[T](),
		call: func(ctx context.Context, query url.Values) (any, error) { return call(ctx, query) },
	}
}

// ServeHTTP writes the answer, or an error, as JSON.
func (r route) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	ctx, cancel := context.WithTimeout(request.Context(), r.limit)
	defer cancel()
	query := request.URL.Query()
	if err := r.requireKnown(query); err != nil {
		write(request, w, nil, err)
		return
	}
	result, err := r.call(ctx, query)
	write(request, w, result, err)
}

// requireKnown refuses parameters of a newer API, because ignoring them could do something else
// than the client wants.
func (r route) requireKnown(query url.Values) error {
	for name := range query {
		if !slices.ContainsFunc(r.params, func(p param) bool { return p.name == name }) {
			return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("%s %s has no parameter %q", r.method, r.path, name))
		}
	}
	return nil
}

func write(r *http.Request, w http.ResponseWriter, body any, err error) {
	status := http.StatusOK
	if err != nil {
		status = errhttp.ToHTTP(err)
		body = problem{Message: metadata.ShowText(err.Error()), PoolNotOpen: errors.Is(err, ErrNotOpen)}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(body); err != nil {
		log.G(r.Context()).WithError(err).WithField("path", r.URL.Path).Debug("the client did not read the answer on " +
			"the admin socket")
	}
}

func routes(backend Backend, daemon Daemon, metrics *Metrics, recorder *Recorder) []route {
	reads := readingRoutes(backend, daemon, metrics, recorder)
	return append(reads, changingRoutes(backend, metrics)...)
}

// readingRoutes returns the routes that change nothing.
func readingRoutes(backend Backend, daemon Daemon, metrics *Metrics, recorder *Recorder) []route {
	return []route{
		newRoute("GET /v1/info", answerTime, "The daemon, its clients, its pool and its counters.", nil,
			func(ctx context.Context, _ url.Values) (Info, error) {
				info, err := backend.Info(ctx)
				info.Daemon, info.Clients = daemon, noNull(info.Clients)
				info.Daemon.UptimeSeconds = int64(time.Since(daemon.StartedAt).Seconds())
				return info, err
			}),
		newRoute("GET /v1/pool", answerTime, "The pool alone.", nil,
			func(ctx context.Context, _ url.Values) (Pool, error) { return backend.Pool(ctx) }),
		newRoute("GET /v1/snapshots", answerTime, "All snapshots.",
			[]param{{"labels", "`no` leaves out the labels, which make the answer large."}},
			func(ctx context.Context, query url.Values) (SnapshotList, error) {
				snapshots, err := backend.Snapshots(ctx, query.Get("labels") != "no")
				slices.SortFunc(snapshots, func(a, b Snapshot) int { return strings.Compare(a.Key, b.Key) })
				return SnapshotList{Snapshots: noNull(snapshots)}, err
			}),
		newRoute("GET /v1/owners", answerTime, "The images, containers and pods that the snapshots belong to, as containerd "+
			"lists them.", nil,
			func(ctx context.Context, _ url.Values) (Owners, error) {
				owners, err := backend.Owners(ctx)
				owners.Owners = noNull(owners.Owners)
				return owners, err
			}),
		newRoute("GET /v1/inspect", answerTime, "One snapshot, with the devices below it.", keyParam(),
			withKey(func(ctx context.Context, key string) (Inspection, error) {
				inspection, err := backend.Inspect(ctx, key)
				inspection.Chain = noNull(inspection.Chain)
				return inspection, err
			})),
		newRoute("GET /v1/diff", diffTime, "The paths that a snapshot changes in its parent. It may take minutes.",
			keyParam(), withKey(func(ctx context.Context, key string) (Difference, error) {
				difference, err := backend.Diff(ctx, key)
				difference.Changes = noNull(difference.Changes)
				return difference, err
			})),
		newRoute("GET /v1/activity", answerTime,
			"containerd's calls, and the removed snapshots that are not deleted yet.", nil,
			func(ctx context.Context, _ url.Values) (Activity, error) {
				return activity(ctx, backend, metrics.calls)
			}),
		newRoute("GET /v1/history", answerTime, "The fill of the pool since the daemon's start.", nil,
			func(context.Context, url.Values) (History, error) { return recorder.history(), nil }),
		newRoute("GET /v1/check", checkTime, "Compares the store, the kernel and the pool. It may take minutes, and changes "+
			"nothing.", nil, checkCall(backend, metrics, false)),
		newRoute("GET /v1/leftovers", answerTime,
			"The kept leftovers, to which a client may have written.", nil,
			func(ctx context.Context, _ url.Values) (LeftoverList, error) {
				leftovers, err := backend.Leftovers(ctx)
				return LeftoverList{Leftovers: noNull(leftovers)}, err
			}),
	}
}

func changingRoutes(backend Backend, metrics *Metrics) []route {
	return []route{
		newRoute("POST /v1/check", checkTime,
			"Compares the store, the kernel and the pool, and repairs each problem whose repair loses no data.", nil,
			checkCall(backend, metrics, true)),
		newRoute("POST /v1/pool/extend", answerTime, "Extends the pool. At least one parameter is required. A pool cannot "+
			"shrink.", []param{
			{"data_bytes", "The new size of the data space."}, {"metadata_bytes", "The new size of the metadata space."},
		}, func(ctx context.Context, query url.Values) (Pool, error) {
			want, err := readExtension(query)
			if err != nil {
				return Pool{}, err
			}
			return backend.ExtendPool(ctx, want)
		}),
		newRoute("POST /v1/pool/trim", trimTime, "Returns the freed blocks of a mounted active snapshot to the pool. It may "+
			"take minutes.", keyParam(), withKey(func(ctx context.Context, key string) (Trimming, error) {
			trimming, err := backend.Trim(ctx, key)
			metrics.Trimmed(trimming)
			return trimming, err
		})),
		newRoute("POST /v1/fork", answerTime, "Returns a token, with which one Prepare gets the snapshot's content "+
			"([forks.md](forks.md)).", keyParam(), withKey(backend.Fork)),
		newRoute("POST /v1/leftovers/remove", answerTime,
			"Deletes a leftover, with its data, in the background. The answer lists the others.",
			[]param{{"device_id", "The leftover's id."}}, removeLeftoverCall(backend)),
		newRoute("POST /v1/client/accept", answerTime, "Lets a client remove the snapshots of earlier clients.",
			clientParam("Default: `default`."), withClient(backend.AcceptClient)),
		newRoute("POST /v1/client/reset", answerTime,
			"Forgets a client: the next process that calls becomes the client.",
			clientParam("Default: `default`."), withClient(backend.ResetClient)),
		newRoute("POST /v1/client/remove", removeTime, "Removes a client that is no longer configured, with all its "+
			"snapshots and their data. It may take minutes.", clientParam("Required."),
			withClient(backend.RemoveClient)),
	}
}

func keyParam() []param {
	return []param{{"key", "The snapshot's key, as in `GET /v1/snapshots`."}}
}

func clientParam(more string) []param { return []param{{"client", "The client's name. " + more}} }

// withClient passes the parameter client to call. It defaults to the default client.
func withClient[T any](call func(context.Context, string) (T, error)) func(context.Context, url.Values) (T, error) {
	return func(ctx context.Context, query url.Values) (T, error) {
		return call(ctx, cmp.Or(query.Get("client"), config.DefaultClient))
	}
}

// withKey passes the required parameter key to call.
func withKey[T any](call func(context.Context, string) (T, error)) func(context.Context, url.Values) (T, error) {
	return func(ctx context.Context, query url.Values) (T, error) {
		if key := query.Get("key"); key != "" {
			return call(ctx, key)
		}
		var none T
		return none, errdefs.ErrInvalidArgument.WithMessage("missing parameter: key")
	}
}

func checkCall(backend Backend, metrics *Metrics, repair bool) func(context.Context, url.Values) (check.Report, error) {
	return func(ctx context.Context, _ url.Values) (check.Report, error) {
		report, err := backend.Check(ctx, repair)
		if err == nil {
			metrics.Checked(report)
		}
		return report, err
	}
}

func removeLeftoverCall(backend Backend) func(context.Context, url.Values) (LeftoverList, error) {
	return func(ctx context.Context, query url.Values) (LeftoverList, error) {
		id, err := strconv.ParseUint(query.Get("device_id"), 10, 32)
		if err != nil {
			return LeftoverList{}, errdefs.ErrInvalidArgument.WithMessage(
				"the parameter device_id must be the id of a leftover")
		}
		leftovers, err := backend.RemoveLeftover(ctx, uint32(id))
		return LeftoverList{Leftovers: noNull(leftovers)}, err
	}
}

// noNull replaces a nil list, which is null in JSON, by an empty one.
func noNull[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
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
		a.Trash[i].Key = shorten(a.Trash[i].Key)
	}
	calls.report(&a)
	return a, nil
}
