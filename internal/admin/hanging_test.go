package admin

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/check"
)

// hanging is a backend whose methods return only when release is closed, like an ioctl on a hanging
// disk. They ignore their context.
type hanging struct {
	Backend
	release chan struct{}
	answer  func() // closes release
	asked   *atomic.Int32
}

func newHanging() hanging {
	release := make(chan struct{})
	return hanging{release: release, answer: sync.OnceFunc(func() { close(release) }), asked: &atomic.Int32{}}
}

func (h hanging) hang() {
	h.asked.Add(1)
	<-h.release
}

func (h hanging) Info(context.Context) (Info, error) { h.hang(); return Info{}, nil }

func (h hanging) Pool(context.Context) (Pool, error) { h.hang(); return Pool{}, nil }

func (h hanging) Snapshots(context.Context, bool) ([]Snapshot, error) { h.hang(); return nil, nil }

func (h hanging) Inspect(context.Context, string) (Inspection, error) {
	h.hang()
	return Inspection{}, nil
}

func (h hanging) Diff(context.Context, string) (Difference, error) {
	h.hang()
	return Difference{}, nil
}

func (h hanging) Check(context.Context, bool) (check.Report, error) {
	h.hang()
	return check.Report{}, nil
}

func (h hanging) ExtendPool(context.Context, Extension) (Pool, error) { h.hang(); return Pool{}, nil }

func (h hanging) Trim(context.Context, string) (Trimming, error) { h.hang(); return Trimming{}, nil }

func (h hanging) Fork(context.Context, string) (Fork, error) { h.hang(); return Fork{}, nil }

func (h hanging) Owners(context.Context) (Owners, error) { h.hang(); return Owners{}, nil }

func (h hanging) Leftovers(context.Context) ([]Leftover, error) { h.hang(); return nil, nil }

func (h hanging) RemoveLeftover(context.Context, uint32) ([]Leftover, error) {
	h.hang()
	return nil, nil
}

func (h hanging) AcceptClient(context.Context, string) (ClientInfo, error) {
	h.hang()
	return ClientInfo{}, nil
}

func (h hanging) ResetClient(context.Context, string) (ClientInfo, error) {
	h.hang()
	return ClientInfo{}, nil
}

func (h hanging) RemoveClient(context.Context, string) (RemovedClient, error) {
	h.hang()
	return RemovedClient{}, nil
}

func (h hanging) Ioctls() map[string]uint64 { return map[string]uint64{"DM_TABLE_STATUS": 1} }

func request(h http.Handler, method, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, "http://localhost"+path, nil))
	return w
}

// TestScrapeOfAKernelThatHangs: scrapes end in time, and leave only one call to the backend
// running.
func TestScrapeOfAKernelThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend := newHanging()
		defer backend.answer()
		metrics := NewMetrics(backend, "", "").Handler()
		start := time.Now()
		answered := make(chan string, 1)
		go func() { answered <- request(metrics, http.MethodGet, "/metrics").Body.String() }()
		select {
		case body := <-answered:
			require.Contains(t, body, "\nthinsnap_pool_up 0\n")
			require.Contains(t, body, `thinsnap_ioctls_total{command="DM_TABLE_STATUS"} 1`)
			require.LessOrEqual(t, time.Since(start), scrapeTime)
		case <-time.After(time.Minute):
			require.Fail(t, "the scrape is still waiting after a minute")
		}
		for range 200 {
			require.Contains(t, request(metrics, http.MethodGet, "/metrics").Body.String(), "\nthinsnap_pool_up 0\n")
		}
		require.EqualValues(t, 1, backend.asked.Load())

		backend.answer()
		synctest.Wait()
		require.Contains(t, request(metrics, http.MethodGet, "/metrics").Body.String(), "\nthinsnap_pool_up 1\n")
	})
}

// TestRequestsToAKernelThatHangs: each path answers within its limit, few calls to the backend run
// at the same time, and the recorded history is still served.
func TestRequestsToAKernelThatHangs(t *testing.T) {
	for _, asked := range routes(newHanging(), Daemon{}, nil, nil) {
		if asked.path == "/v1/history" {
			continue
		}
		t.Run(asked.method+" "+asked.path, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				backend := newHanging()
				defer backend.answer()
				h := NewServer(t.Context(), backend, Daemon{}, NewMetrics(backend, "", ""), NewRecorder())
				values := make(url.Values)
				for _, p := range asked.params {
					values.Set(p.name, "1")
				}
				var group sync.WaitGroup
				ended := make(chan struct{})
				for range 100 {
					group.Go(func() {
						w := request(h, asked.method, asked.path+"?"+values.Encode())
						require.Equal(t, http.StatusServiceUnavailable, w.Code)
						require.Contains(t, w.Body.String(), "dmesg")
					})
				}
				go func() { group.Wait(); close(ended) }()
				select {
				case <-ended:
				case <-time.After(asked.limit + time.Minute):
					require.Fail(t, "requests are still waiting")
				}
				require.LessOrEqual(t, backend.asked.Load(), int32(8))
				require.Equal(t, http.StatusOK, request(h, http.MethodGet, "/v1/history").Code)
			})
		})
	}
}

// TestBackendThatPanics: the panic reaches the request's goroutine, where net/http recovers it, and
// the turn is free again.
func TestBackendThatPanics(t *testing.T) {
	first := true
	turn := make(turns, 1)
	ask := func() (int, error) {
		return inTurn(t.Context(), turn, 0, func(context.Context) (int, error) {
			if first {
				first = false
				panic("once")
			}
			return 1, nil
		})
	}
	require.PanicsWithValue(t, "once", func() { _, _ = ask() })
	got, err := ask()
	require.NoError(t, err)
	require.Equal(t, 1, got)
}
