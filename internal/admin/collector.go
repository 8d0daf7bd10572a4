package admin

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/containerd/log"
	"github.com/prometheus/client_golang/prometheus"
)

// scrapeTime limits the backend's part of a scrape: Prometheus' default timeout is 10 seconds.
const scrapeTime = 5 * time.Second

// series is a time series of a value in Info.
type series struct {
	desc   *prometheus.Desc
	kind   prometheus.ValueType
	labels []string // the values of the labels
	value  func(*Info) float64
}

// backendCollector converts a backend's Info into metrics at each scrape.
type backendCollector struct {
	backend Backend
	silent  atomic.Bool // the last scrape had no answer
	up      *prometheus.Desc
	ioctls  *prometheus.Desc
	series  []series
	clients []clientSeries
}

// clientSeries has a time series for each client. The client's name is its first label.
type clientSeries struct {
	desc   *prometheus.Desc
	kind   prometheus.ValueType
	labels []string // the values of the further labels
	value  func(*ClientInfo) float64
}

func newBackendCollector(backend Backend) *backendCollector {
	c := &backendCollector{
		backend: newBounded(backend),
		up:      describe("pool_up", "1 if the pool answered this scrape, else 0, and most other metrics are absent."),
		ioctls:  describe("ioctls_total", "Device-mapper ioctls.", "command"),
	}
	c.pool()
	c.spaces()
	c.volumes()
	c.snapshots()
	c.store()
	c.diffs()
	return c
}

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("thinsnap_"+name, help, labels, nil)
}

func (c *backendCollector) gauge(name, help string, value func(*Info) float64) {
	c.add(prometheus.GaugeValue, describe(name, help), value)
}

func (c *backendCollector) counter(name, help string, value func(*Info) float64) {
	c.add(prometheus.CounterValue, describe(name, help), value)
}

func (c *backendCollector) add(
	kind prometheus.ValueType, desc *prometheus.Desc, value func(*Info) float64, labels ...string,
) {
	c.series = append(c.series, series{desc, kind, labels, value})
}

func boolValue(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func (c *backendCollector) pool() {
	state := describe("pool_state",
		"1 for the pool's present state (rw, ro, out_of_data_space, fail), 0 for the others.", "state")
	for _, s := range []string{StateReadWrite, StateReadOnly, StateOutOfDataSpace, StateFailed} {
		c.add(prometheus.GaugeValue, state, func(i *Info) float64 { return boolValue(i.Pool.State == s) }, s)
	}
	c.gauge("pool_needs_check", "1 if the kernel has marked the pool's metadata needs_check.",
		func(i *Info) float64 { return boolValue(i.Pool.NeedsCheck) })
	c.gauge("pool_transaction_id", "Transaction id of the pool.",
		func(i *Info) float64 { return float64(i.Pool.TransactionID) })
	c.gauge("pool_overpromised_bytes", "Space of the pool that is neither allocated nor free on the disk below its "+
		"files.", func(i *Info) float64 { return float64(i.Pool.Overpromised) })
	c.gauge("pool_growth_stuck", "1 while the pool should grow and cannot.",
		func(i *Info) float64 { return boolValue(i.Pool.Autoextend.Stuck != "") })
	c.counter("events_total", "Device-mapper events from the kernel, at most one a second.",
		func(i *Info) float64 { return float64(i.Pool.Events) })
	extensions := describe("pool_extensions_total", "Extensions of the pool.", "device")
	c.add(prometheus.CounterValue, extensions,
		func(i *Info) float64 { return float64(i.Pool.Autoextend.DataExtensions) }, "data")
	c.add(prometheus.CounterValue, extensions,
		func(i *Info) float64 { return float64(i.Pool.Autoextend.MetadataExtensions) }, "metadata")
}

// spaces adds the sizes of the pool's data and metadata.
func (c *backendCollector) spaces() {
	for _, size := range []struct {
		name, help string
		value      func(*Space) uint64
	}{
		{"used", "Used space of the pool.", func(s *Space) uint64 { return s.Used }},
		{"size", "Size of the pool.", func(s *Space) uint64 { return s.Total }},
		{"available", "Available space: the pool's free space, less the holes in its files that the disk cannot fill.",
			func(s *Space) uint64 { return s.Available }},
		{"min_free", "Available space below which new snapshots are refused.",
			func(s *Space) uint64 { return s.MinFree }},
		{"low_water", "Free space below which the kernel raises an event; in modes loop and direct-lvm, autoextend then " +
			"extends the pool.",
			func(s *Space) uint64 { return s.LowWater }},
	} {
		desc := describe("pool_"+size.name+"_bytes", size.help, "device")
		c.add(prometheus.GaugeValue, desc, func(i *Info) float64 { return float64(size.value(&i.Pool.Data)) }, "data")
		c.add(prometheus.GaugeValue, desc, func(i *Info) float64 { return float64(size.value(&i.Pool.Metadata)) }, "metadata")
	}
}

func (c *backendCollector) volumes() {
	desc := describe("volumes",
		"Volumes, by state; some are in several. active: with a mapped device, including spare (created ahead for future "+
			"snapshots) and frozen (copies of active snapshots). trash: of removed snapshots, not deleted yet. kept: "+
			"leftovers, see `thinsnap leftovers`. settling: being settled in the background. waiting: to be settled. "+
			"deferred: to be settled again later, mostly because they are in use. removal-deferred: the mapped device could "+
			"not be removed. deletion-deferred: the volume could not be deleted.", "state")
	for _, state := range []struct {
		name  string
		value func(*Info) uint64
	}{
		{"active", func(i *Info) uint64 { return i.Devices.Active }},
		{"spare", func(i *Info) uint64 { return i.Devices.Spares }},
		{"frozen", func(i *Info) uint64 { return i.Devices.Frozen }},
		{"trash", func(i *Info) uint64 { return i.Devices.Trash }},
		{"kept", func(i *Info) uint64 { return i.Devices.Kept }},
		{"settling", func(i *Info) uint64 { return i.Background.Running }},
		{"waiting", func(i *Info) uint64 { return i.Background.Waiting }},
		{"deferred", func(i *Info) uint64 { return i.Background.Deferred }},
		{"removal-deferred", func(i *Info) uint64 { return i.Background.DeferredRemovals }},
		{"deletion-deferred", func(i *Info) uint64 { return i.Background.DeferredDeletions }},
	} {
		c.add(prometheus.GaugeValue, desc, func(i *Info) float64 { return float64(state.value(i)) }, state.name)
	}
	requests := describe("spare_requests_total",
		"Snapshots that took a spare (hit) or found none (miss).", "result")
	c.add(prometheus.CounterValue, requests, func(i *Info) float64 { return float64(i.Spares.Hits) }, "hit")
	c.add(prometheus.CounterValue, requests, func(i *Info) float64 { return float64(i.Spares.Misses) }, "miss")
	c.gauge("device_ids_left", "Device ids that were never used.",
		func(i *Info) float64 { return float64(i.Devices.IDsLeft) })
}

func (c *backendCollector) snapshots() {
	kinds := describe("snapshots", "Snapshots.", "client", "kind")
	gauge, counter := prometheus.GaugeValue, prometheus.CounterValue
	c.clients = []clientSeries{
		{kinds, gauge, []string{KindActive}, func(c *ClientInfo) float64 { return float64(c.Snapshots.Active) }},
		{kinds, gauge, []string{KindView}, func(c *ClientInfo) float64 { return float64(c.Snapshots.View) }},
		{kinds, gauge, []string{KindCommitted}, func(c *ClientInfo) float64 { return float64(c.Snapshots.Committed) }},
		{describe("snapshots_kept", "Snapshots of earlier clients that the present one cannot remove.",
			"client"), gauge, nil, func(c *ClientInfo) float64 { return float64(c.KeptSnapshots) }},
		{describe("client_alive", "1 if the client's process runs, else 0.", "client"),
			gauge, nil, func(c *ClientInfo) float64 { return boolValue(c.Alive) }},
		{describe("client_refused_calls_total", "Calls refused because the caller is not the client, or the name of the "+
			"client's proxy plugin has changed.", "client"),
			counter, nil, func(c *ClientInfo) float64 { return float64(c.RefusedCalls) }},
	}
	c.gauge("writes_lost_snapshots", "Active snapshots that may have lost writes, and so can be neither committed nor "+
		"forked; `thinsnap ls` shows them.", func(i *Info) float64 { return float64(i.Devices.WritesLost) })
	c.gauge("snapshots_left", "Snapshots that can be created in the pool until new ones are refused because of its time.",
		func(i *Info) float64 { return float64(i.Devices.SnapshotsLeft) })
}

func (c *backendCollector) store() {
	c.counter("store_operations_total", "Operations that changed the store.",
		func(i *Info) float64 { return float64(i.Store.Operations) })
	c.counter("store_transactions_total", "Committed transactions of the store; operations share them.",
		func(i *Info) float64 { return float64(i.Store.Transactions) })
	c.counter("store_reads_total", "Read transactions of the store.",
		func(i *Info) float64 { return float64(i.Store.Reads) })
	c.counter("store_commit_seconds_total", "Time until the store's transactions were on stable storage.",
		func(i *Info) float64 { return i.Store.CommitSeconds })
	c.gauge("store_size_bytes", "Size of the store's file.", func(i *Info) float64 { return float64(i.Store.Bytes) })
}

func (c *backendCollector) diffs() {
	results := describe("diffs_total", "Comparisons of snapshots for containerd, by result: made from the changed "+
		"inodes of an ext4 (inodes) or by a walk (walk), left to containerd's next differ (left), failed while the "+
		"layer was written or because of lost writes (failed), or cancelled.", "result")
	for result, value := range map[string]func(*Differ) uint64{
		"inodes":    func(d *Differ) uint64 { return d.Inodes },
		"walk":      func(d *Differ) uint64 { return d.Walked },
		"left":      func(d *Differ) uint64 { return d.Left },
		"failed":    func(d *Differ) uint64 { return d.Failed },
		"cancelled": func(d *Differ) uint64 { return d.Cancelled },
	} {
		c.add(prometheus.CounterValue, results, func(i *Info) float64 { return float64(value(&i.Differ)) }, result)
	}
	kinds := describe("diff_bytes_total", "Bytes of comparisons. changed: that only one volume maps, or that both map to "+
		"different blocks. read: of files. written: of layers before compression; rises while one is written.", "kind")
	for kind, value := range map[string]func(*Differ) uint64{
		"changed": func(d *Differ) uint64 { return d.Changed },
		"read":    func(d *Differ) uint64 { return d.Read },
		"written": func(d *Differ) uint64 { return d.Written },
	} {
		c.add(prometheus.CounterValue, kinds, func(i *Info) float64 { return float64(value(&i.Differ)) }, kind)
	}
	c.gauge("diffs_running", "Running comparisons of snapshots for containerd.",
		func(i *Info) float64 { return float64(i.Differ.Running) })
}

// Describe implements prometheus.Collector.
func (c *backendCollector) Describe(descs chan<- *prometheus.Desc) {
	descs <- c.up
	descs <- c.ioctls
	sent := make(map[*prometheus.Desc]bool)
	for _, s := range c.series {
		if !sent[s.desc] {
			sent[s.desc] = true
			descs <- s.desc
		}
	}
	for _, s := range c.clients {
		if !sent[s.desc] {
			sent[s.desc] = true
			descs <- s.desc
		}
	}
}

// Collect implements prometheus.Collector. If the pool does not answer, pool_up is 0 and the scrape
// succeeds, because the other metrics are needed then.
func (c *backendCollector) Collect(metrics chan<- prometheus.Metric) {
	send := func(kind prometheus.ValueType, desc *prometheus.Desc, value float64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(desc, kind, value, labels...)
	}
	for command, n := range c.backend.Ioctls() {
		send(prometheus.CounterValue, c.ioctls, float64(n), command)
	}
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTime)
	defer cancel()
	info, err := c.backend.Info(ctx)
	if err != nil {
		// Scrapes are frequent: log only the first failure.
		if !c.silent.Swap(true) {
			log.L.WithError(err).Warn("the pool does not answer metrics scrapes")
		}
		send(prometheus.GaugeValue, c.up, 0)
		return
	}
	if c.silent.Swap(false) {
		log.L.Info("the pool answers metrics scrapes again")
	}
	send(prometheus.GaugeValue, c.up, 1)
	for _, s := range c.series {
		send(s.kind, s.desc, s.value(&info), s.labels...)
	}
	for _, client := range append([]ClientInfo{info.Client}, info.Clients...) {
		for _, s := range c.clients {
			send(s.kind, s.desc, s.value(&client), append([]string{client.Name}, s.labels...)...)
		}
	}
}
