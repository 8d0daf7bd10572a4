package admin

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metrics holds the daemon's metrics in a registry of their own. It is safe for concurrent use.
type Metrics struct {
	registry  *prometheus.Registry
	durations *prometheus.HistogramVec
	running   *prometheus.GaugeVec
	calls     *calls
}

// NewMetrics returns the metrics of operations, and of a backend that is asked at every scrape.
func NewMetrics(backend Backend, version, revision string) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		calls:    newCalls(),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "thinsnap_operation_duration_seconds",
			Help: "Time that operations of the snapshotter took, by method and outcome (a gRPC code).",
			// From half a millisecond, less than one commit, to half a minute, which is where clients give up.
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 17),
		}, []string{"method", "outcome"}),
		running: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "thinsnap_operations_running",
			Help: "Operations of the snapshotter that have begun and not ended, by method.",
		}, []string{"method"}),
	}
	build := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "thinsnap_build_info",
		Help:        "Always 1; the labels say what was built.",
		ConstLabels: prometheus.Labels{"version": version, "revision": revision},
	}, func() float64 { return 1 })
	m.registry.MustRegister(m.durations, m.running, build, newBackendCollector(backend),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Begin notes that an operation on the snapshot of this key has begun; the key may be empty. The function that it returns
// must be called once, with the operation's outcome, when it ends.
func (m *Metrics) Begin(method, key string) (end func(outcome string)) {
	m.running.WithLabelValues(method).Inc()
	ended := m.calls.begin(method, key)
	return func(outcome string) {
		took := ended(outcome)
		m.running.WithLabelValues(method).Dec()
		m.durations.WithLabelValues(method, outcome).Observe(took.Seconds())
	}
}

// Handler serves the metrics in the formats of Prometheus.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// NewMetricsServer returns a server with nothing but the metrics under /metrics, for an address that is not root's alone.
func NewMetricsServer(m *Metrics) *Server {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", m.Handler())
	return &Server{http.Server{
		Handler: mux, ReadHeaderTimeout: readTime, WriteTimeout: answerTime, IdleTimeout: idleTime, MaxHeaderBytes: headerBytes,
	}}
}
