package admin

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc/codes"

	"github.com/thinsnap/thinsnap/internal/check"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/httpserver"
	"github.com/thinsnap/thinsnap/metadata"
)

// maxScrapes limits the concurrent scrapes. Further ones get 503 at once.
const maxScrapes = 4

// Metrics has the daemon's metrics, in a registry of its own. It is safe for concurrent use.
type Metrics struct {
	registry  *prometheus.Registry
	durations *prometheus.HistogramVec
	running   *prometheus.GaugeVec
	limited   *prometheus.CounterVec
	trimmed   prometheus.Counter
	unmapped  prometheus.Counter
	findings  prometheus.Gauge
	checkedAt prometheus.Gauge
	// checked registers the metrics of checks after the first check. Zeros before it would look
	// like a check without findings.
	checked sync.Once
	calls   *calls
}

// NewMetrics returns the metrics of operations and of a backend. Each scrape asks the backend.
func NewMetrics(backend Backend, version, revision string) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		calls:    newCalls(),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "thinsnap_operation_duration_seconds",
			Help: "Duration of snapshotter operations; the outcome is a gRPC code.",
			// From half a millisecond, in which no commit ends, to half a minute.
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 17),
		}, []string{"client", "method", "outcome"}),
		running: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "thinsnap_operations_running",
			Help: "Running snapshotter operations.",
		}, []string{"client", "method"}),
		limited: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "thinsnap_connections_limited_total",
			Help: "Connections that waited or were closed because the listener had too many.",
		}, []string{"address"}),
		trimmed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "thinsnap_trimmed_bytes_total",
			Help: "Free space, mapped or not, that file systems discarded in a `thinsnap pool trim`.",
		}),
		unmapped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "thinsnap_trim_unmapped_bytes_total",
			Help: "Space that volumes no longer map after a `thinsnap pool trim`; blocks that others share stay in use.",
		}),
		findings: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "thinsnap_check_findings",
			Help: "Unrepaired problems of this daemon's last `thinsnap check`; absent before the first.",
		}),
		checkedAt: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "thinsnap_check_timestamp_seconds",
			Help: "End of this daemon's last `thinsnap check`, as Unix time; absent before the first.",
		}),
	}
	build := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "thinsnap_build_info",
		Help:        "Always 1; the labels describe the build.",
		ConstLabels: prometheus.Labels{"version": version, "revision": revision},
	}, func() float64 { return 1 })
	m.registry.MustRegister(m.durations, m.running, m.limited, m.trimmed, m.unmapped, build, newBackendCollector(backend),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.Of(config.DefaultClient)
	return m
}

// Begin records the start of an operation of the default client, like ClientMetrics.Begin.
func (m *Metrics) Begin(method, key string) (end func(outcome string) time.Duration) {
	return m.Of(config.DefaultClient).Begin(method, key)
}

// Of returns the metrics of one client's operations.
func (m *Metrics) Of(client string) *ClientMetrics {
	// Create each series at once: rate() and increase() miss the first increment of a series that
	// appears with it.
	for _, method := range []string{"Prepare", "View", "Commit", "Mounts", "Remove", "Stat", "Update", "List", "Usage"} {
		m.running.WithLabelValues(client, method)
		m.durations.WithLabelValues(client, method, codes.OK.String())
	}
	return &ClientMetrics{m, client}
}

// ClientMetrics has the metrics of one client's operations.
type ClientMetrics struct {
	all    *Metrics
	client string
}

// Begin records the start of an operation on a snapshot. The key is in the client's own form, and
// may be empty. The caller must call end once, with the operation's outcome; end returns the
// duration.
func (m *ClientMetrics) Begin(method, key string) (end func(outcome string) time.Duration) {
	running, durations := m.all.running.WithLabelValues(m.client, method), m.all.durations
	running.Inc()
	if key != "" {
		key = metadata.ShowKey(metadata.KeyPrefix(config.KeySpace(m.client)) + key)
	}
	ended := m.all.calls.begin(m.client, method, key)
	return func(outcome string) time.Duration {
		took := ended(outcome)
		running.Dec()
		durations.WithLabelValues(m.client, method, outcome).Observe(took.Seconds())
		return took
	}
}

// ConnectionsLimited counts a connection that waited or was closed, because the listener at address
// had too many.
func (m *Metrics) ConnectionsLimited(address string) { m.limited.WithLabelValues(address).Inc() }

// Trimmed adds the result of a trim.
func (m *Metrics) Trimmed(t Trimming) {
	m.trimmed.Add(float64(t.Trimmed))
	m.unmapped.Add(float64(t.Unmapped))
}

// Checked records the result of a check.
func (m *Metrics) Checked(r check.Report) {
	m.findings.Set(float64(len(r.Findings)))
	m.checkedAt.SetToCurrentTime()
	m.checked.Do(func() { m.registry.MustRegister(m.findings, m.checkedAt) })
}

// Handler serves the metrics in Prometheus' formats. A scrape ends within Prometheus' default
// timeout, even if the pool does not answer.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: maxScrapes, Timeout: scrapeTime + time.Second,
	})
}

// NewMetricsServer returns a server that has only /metrics, for an address that other users than
// root can reach.
func NewMetricsServer(ctx context.Context, m *Metrics) *httpserver.Server {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", m.Handler())
	return httpserver.New(ctx, httpserver.RefuseRebinding(mux), answerTime)
}
