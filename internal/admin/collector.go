package admin

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/containerd/log"
	"github.com/prometheus/client_golang/prometheus"
)

// scrapeTime limits the backend's part of a scrape. Prometheus' default timeout is 10 seconds.
const scrapeTime = 5 * time.Second

// gauge is a gauge from a value of Info.
type gauge struct {
	desc  *prometheus.Desc
	value func(*Info) float64
}

// counter is a counter from a value of Info.
type counter gauge

// backendCollector converts a backend's Info to metrics at each scrape.
type backendCollector struct {
	backend   Backend
	silent    atomic.Bool // the last scrape had no answer
	up        *prometheus.Desc
	state     *prometheus.Desc
	snapshots *prometheus.Desc
	ioctls    *prometheus.Desc
	spares    *prometheus.Desc
	events    *prometheus.Desc
	extends   *prometheus.Desc
	settling  *prometheus.Desc
	deferred  *prometheus.Desc
	refused   *prometheus.Desc
	diffs     *prometheus.Desc
	diffBytes *prometheus.Desc
	store     []counter
	gauges    []gauge
}

func newBackendCollector(backend Backend) *backendCollector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("thinsnap_"+name, help, labels, nil)
	}
	return &backendCollector{
		backend: newBounded(backend),
		up: desc("pool_up", "1 if the pool answered this scrape, else 0; then the other metrics of the "+
			"pool are missing."),
		state:     desc("pool_state", "1 for the pool's present state, 0 for the others.", "state"),
		snapshots: desc("snapshots", "Snapshots by kind.", "kind"),
		spares:    desc("spares_total", "Snapshots that took a spare volume (taken) or found none (missed).", "result"),
		events:    desc("events_total", "Device-mapper events from the kernel, at most one a second."),
		extends:   desc("pool_extensions_total", "Extensions of the pool, by device.", "device"),
		ioctls:    desc("ioctls_total", "Device-mapper ioctls, by command.", "command"),
		settling: desc("volumes_settling",
			"Volumes to be settled in the background, by state: being settled (running), in the queue (waiting), or to be "+
				"retried (deferred), mostly because they are in use.", "state"),
		deferred: desc("volumes_deferred",
			"Volumes whose mapped device could not be removed (removal), or that could not be deleted (deletion), mostly "+
				"because they are in use; they are retried.", "operation"),
		store: []counter{
			{desc("store_operations_total", "Operations that changed the store."),
				func(i *Info) float64 { return float64(i.Store.Operations) }},
			{desc("store_transactions_total", "Committed transactions of the store; operations share them."),
				func(i *Info) float64 { return float64(i.Store.Transactions) }},
			{desc("store_reads_total", "Read transactions of the store."),
				func(i *Info) float64 { return float64(i.Store.Reads) }},
			{desc("store_commit_seconds_total", "Time until the store's transactions were on stable storage."),
				func(i *Info) float64 { return i.Store.CommitSeconds }},
		},
		refused: desc("client_refused_calls_total", "Calls that were refused because another process is the client, "+
			"or its proxy plugin has another name."),
		diffs: desc("diffs_total", "Comparisons of snapshots for containerd, by result: made by the inodes of an ext4 "+
			"that changed (inodes), or by a walk (walk), left to containerd's next differ (left), failed while the "+
			"layer was written (failed), or cancelled.", "result"),
		diffBytes: desc("diff_bytes_total", "Bytes of compared volumes that were not on the same blocks (changed), of files "+
			"that were read to compare them (read), and of layers before compression (written), which rise while one is "+
			"written.", "kind"),
		gauges: []gauge{
			{desc("diffs_running", "Comparisons of snapshots for containerd that run."),
				func(i *Info) float64 { return float64(i.Differ.Running) }},
			{desc("snapshots_kept", "Snapshots of earlier clients that the present one cannot remove."),
				func(i *Info) float64 { return float64(i.Client.KeptSnapshots) }},
			{desc("pool_needs_check", "1 if the kernel has marked the pool's metadata needs_check."), func(i *Info) float64 {
				if i.Pool.NeedsCheck {
					return 1
				}
				return 0
			}},
			{desc("pool_transaction_id", "Transaction id of the pool."),
				func(i *Info) float64 { return float64(i.Pool.TransactionID) }},
			{desc("pool_data_used_bytes", "Data space in use."), func(i *Info) float64 { return float64(i.Pool.Data.Used) }},
			{desc("pool_data_size_bytes", "Size of the data space."),
				func(i *Info) float64 { return float64(i.Pool.Data.Total) }},
			{desc("pool_data_available_bytes",
				"Available data space: free in the pool, or on the disk below its files if "+
					"that is less."), func(i *Info) float64 { return float64(i.Pool.Data.Available) }},
			{desc("pool_overpromised_bytes", "Space that the pool promises and that is neither on the disk below its files "+
				"nor free there."), func(i *Info) float64 { return float64(i.Pool.Overpromised) }},
			{desc("pool_metadata_used_bytes", "Metadata space in use."),
				func(i *Info) float64 { return float64(i.Pool.Metadata.Used) }},
			{desc("pool_metadata_size_bytes", "Size of the metadata space."),
				func(i *Info) float64 { return float64(i.Pool.Metadata.Total) }},
			{desc("pool_metadata_available_bytes",
				"Available metadata space: free in the pool, or on the disk below its files if "+
					"that is less."), func(i *Info) float64 { return float64(i.Pool.Metadata.Available) }},
			{desc("pool_growth_stuck", "1 while the pool should grow and cannot."), func(i *Info) float64 {
				if i.Pool.Autoextend.Stuck != "" {
					return 1
				}
				return 0
			}},
			{desc("pool_data_min_free_bytes", "Available data space below which new snapshots are refused."),
				func(i *Info) float64 { return float64(i.Pool.Data.MinFree) }},
			{desc("pool_metadata_min_free_bytes", "Available metadata space below which new snapshots are refused."),
				func(i *Info) float64 { return float64(i.Pool.Metadata.MinFree) }},
			{desc("pool_data_low_water_bytes",
				"Free data space below which the kernel raises an event, and the "+
					"pool is extended."), func(i *Info) float64 { return float64(i.Pool.Data.LowWater) }},
			{desc("pool_metadata_low_water_bytes", "Free metadata space below which the kernel raises an event."),
				func(i *Info) float64 { return float64(i.Pool.Metadata.LowWater) }},
			{desc("store_size_bytes", "Size of the store's file."), func(i *Info) float64 { return float64(i.Store.Bytes) }},
			{desc("devices_active", "Active volumes, which have a mapped device."),
				func(i *Info) float64 { return float64(i.Devices.Active) }},
			{desc("devices_spare", "Spare volumes, created ahead for future snapshots."),
				func(i *Info) float64 { return float64(i.Devices.Spares) }},
			{desc("devices_frozen", "Frozen copies of snapshots in use, which clients read."),
				func(i *Info) float64 { return float64(i.Devices.Frozen) }},
			{desc("devices_trash", "Volumes of removed snapshots that are not deleted yet."),
				func(i *Info) float64 { return float64(i.Devices.Trash) }},
			{desc("devices_kept", "Volumes that the store does not know but that were written to; see `thinsnap leftovers`."),
				func(i *Info) float64 { return float64(i.Devices.Kept) }},
			{desc("device_ids_left", "Device ids that were never used."),
				func(i *Info) float64 { return float64(i.Devices.IDsLeft) }},
			{desc("snapshots_left", "Snapshots that can be created in the pool until new ones are refused."),
				func(i *Info) float64 { return float64(i.Devices.SnapshotsLeft) }},
		},
	}
}

// Describe implements prometheus.Collector.
func (c *backendCollector) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.up, c.state, c.snapshots, c.spares, c.events, c.extends, c.settling,
		c.deferred, c.ioctls, c.refused, c.diffs,
		c.diffBytes} {
		descs <- d
	}
	for _, n := range c.store {
		descs <- n.desc
	}
	for _, g := range c.gauges {
		descs <- g.desc
	}
}

// Collect implements prometheus.Collector. A pool that does not answer sets pool_up to 0 and does
// not fail the scrape, because the other metrics are needed then.
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
		// Who scrapes does not decide how much is logged.
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
	for _, state := range []string{StateReadWrite, StateReadOnly, StateOutOfDataSpace, StateFailed} {
		value := 0.0
		if info.Pool.State == state {
			value = 1
		}
		send(prometheus.GaugeValue, c.state, value, state)
	}
	send(prometheus.GaugeValue, c.snapshots, float64(info.Snapshots.Active), KindActive)
	send(prometheus.GaugeValue, c.snapshots, float64(info.Snapshots.View), KindView)
	send(prometheus.GaugeValue, c.snapshots, float64(info.Snapshots.Committed), KindCommitted)
	send(prometheus.CounterValue, c.spares, float64(info.Spares.Hits), "taken")
	send(prometheus.CounterValue, c.spares, float64(info.Spares.Misses), "missed")
	send(prometheus.CounterValue, c.events, float64(info.Pool.Events))
	send(prometheus.CounterValue, c.extends, float64(info.Pool.Autoextend.DataExtensions), "data")
	send(prometheus.CounterValue, c.extends, float64(info.Pool.Autoextend.MetadataExtensions), "metadata")
	send(prometheus.CounterValue, c.refused, float64(info.Client.RefusedCalls))
	send(prometheus.GaugeValue, c.settling, float64(info.Background.Running), "running")
	send(prometheus.GaugeValue, c.settling, float64(info.Background.Waiting), "waiting")
	send(prometheus.GaugeValue, c.settling, float64(info.Background.Deferred), "deferred")
	send(prometheus.GaugeValue, c.deferred, float64(info.Background.DeferredRemovals), "removal")
	send(prometheus.GaugeValue, c.deferred, float64(info.Background.DeferredDeletions), "deletion")
	for result, n := range map[string]uint64{
		"inodes": info.Differ.Inodes, "walk": info.Differ.Walked, "left": info.Differ.Left,
		"failed": info.Differ.Failed, "cancelled": info.Differ.Cancelled,
	} {
		send(prometheus.CounterValue, c.diffs, float64(n), result)
	}
	for kind, n := range map[string]uint64{
		"changed": info.Differ.Changed, "read": info.Differ.Read, "written": info.Differ.Written,
	} {
		send(prometheus.CounterValue, c.diffBytes, float64(n), kind)
	}
	for _, n := range c.store {
		send(prometheus.CounterValue, n.desc, n.value(&info))
	}
	for _, g := range c.gauges {
		send(prometheus.GaugeValue, g.desc, g.value(&info))
	}
}
