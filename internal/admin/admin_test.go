package admin_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/check"
	"github.com/thinsnap/thinsnap/internal/unixsocket"
)

// fakeBackend answers with fixed values, or with err.
type fakeBackend struct {
	snapshots []admin.Snapshot
	leftovers []admin.Leftover
	err       error
}

func (f *fakeBackend) Info(context.Context) (admin.Info, error) {
	return admin.Info{
		Pool: admin.Pool{
			Name: "thinsnap", State: admin.StateReadWrite,
			Data:   admin.Space{Used: 1 << 20, Total: 1 << 30, MinFree: 1 << 30, LowWater: 2 << 30},
			Events: 6, Autoextend: admin.Autoextend{DataExtensions: 4, MetadataExtensions: 5, Stuck: "no room"},
		},
		Snapshots: admin.SnapshotCounts{Active: 1, Committed: 2},
		Client: admin.ClientInfo{
			Name: "default", Configured: true, Alive: true, Snapshots: admin.SnapshotCounts{Active: 1, Committed: 1},
		},
		Clients: []admin.ClientInfo{{Name: "k3s", RefusedCalls: 3, Snapshots: admin.SnapshotCounts{Committed: 1}}},
		Devices: admin.Volumes{Trash: 3, Spares: 2, WritesLost: 8},
		Spares:  admin.Spares{Hits: 9, Misses: 1},

		Background: admin.Background{Running: 1, Waiting: 2, Deferred: 4, DeferredRemovals: 3, DeferredDeletions: 1},
		Store:      admin.Store{Operations: 20, Transactions: 10, Reads: 30, CommitSeconds: 0.5, Bytes: 65536},
	}, f.err
}

func (f *fakeBackend) Pool(ctx context.Context) (admin.Pool, error) {
	info, err := f.Info(ctx)
	return info.Pool, err
}

func (f *fakeBackend) Snapshots(_ context.Context, labels bool) ([]admin.Snapshot, error) {
	all := slices.Clone(f.snapshots)
	for i := range all {
		if !labels {
			all[i].Labels = nil
		}
	}
	return all, f.err
}

func (f *fakeBackend) Inspect(_ context.Context, key string) (admin.Inspection, error) {
	for _, s := range f.snapshots {
		if s.Key == key {
			return admin.Inspection{Snapshot: s, Device: admin.Device{Role: admin.RoleThin}}, f.err
		}
	}
	return admin.Inspection{}, errdefs.ErrNotFound.WithMessage("snapshot " + key + " does not exist")
}

func (f *fakeBackend) Diff(_ context.Context, key string) (admin.Difference, error) {
	return admin.Difference{Key: key, Level: "walk"}, f.err
}

func (f *fakeBackend) Check(_ context.Context, repair bool) (check.Report, error) {
	report := check.Report{Findings: []check.Finding{}, Pending: []check.Finding{}, Repaired: []check.Finding{}}
	if repair {
		report.Repaired = append(report.Repaired, check.Finding{Kind: check.KindLoop, Subject: "loop device /dev/loop7", Repair: "detach it"})
	}
	return report, f.err
}

func (f *fakeBackend) ExtendPool(ctx context.Context, want admin.Extension) (admin.Pool, error) {
	pool, err := f.Pool(ctx)
	pool.Data.Total, pool.Metadata.Total = want.Data, want.Metadata
	return pool, err
}

func (f *fakeBackend) Trim(_ context.Context, key string) (admin.Trimming, error) {
	return admin.Trimming{Key: key, Trimmed: 1 << 30, Unmapped: 1 << 20}, f.err
}

func (f *fakeBackend) Fork(_ context.Context, key string) (admin.Fork, error) {
	return admin.Fork{Token: "token of " + key, Label: "from", Snapshotter: "thinsnap"}, f.err
}

func (f *fakeBackend) Trash(_ context.Context, limit int) ([]admin.Removed, error) {
	all := []admin.Removed{{Key: strings.Repeat("k", 1000), DeviceID: 7}, {Key: "b", DeviceID: 8}, {Key: "c", DeviceID: 9}}
	return all[:min(limit, len(all))], f.err
}

func (f *fakeBackend) Fill(context.Context, time.Duration) (admin.Fill, error) {
	return admin.Fill{DataUsed: 1 << 20, DataTotal: 1 << 30}, f.err
}

func (f *fakeBackend) Owners(context.Context) (admin.Owners, error) {
	return admin.Owners{Unknown: "no containerd is connected"}, f.err
}

func (f *fakeBackend) Leftovers(context.Context) ([]admin.Leftover, error) {
	return f.leftovers, f.err
}

func (f *fakeBackend) RemoveLeftover(_ context.Context, id uint32) ([]admin.Leftover, error) {
	if len(f.leftovers) == 0 || f.leftovers[0].DeviceID != id {
		return nil, errdefs.ErrNotFound.WithMessage("no such leftover")
	}
	f.leftovers = nil
	return nil, f.err
}

func (f *fakeBackend) AcceptClient(_ context.Context, name string) (admin.ClientInfo, error) {
	return admin.ClientInfo{Name: name, Proxy: "thinsnap", PID: 812}, f.err
}

func (f *fakeBackend) RemoveClient(_ context.Context, name string) (admin.RemovedClient, error) {
	return admin.RemovedClient{Name: name, Snapshots: 7}, f.err
}

func (f *fakeBackend) ResetClient(_ context.Context, name string) (admin.ClientInfo, error) {
	return admin.ClientInfo{Name: name, KeptSnapshots: 4}, f.err
}

func (f *fakeBackend) Ioctls() map[string]uint64 { return map[string]uint64{"DM_TABLE_STATUS": 7} }

// serve starts a server on a real socket and returns its address.
func serve(t *testing.T, backend admin.Backend, metrics *admin.Metrics) string {
	t.Helper()
	dir := t.TempDir()
	address := filepath.Join(dir, "admin.sock")
	l, err := unixsocket.Listen(t.Context(), address)
	require.NoError(t, err)
	server := admin.NewServer(t.Context(), backend, admin.Daemon{
		Version: "1.2.3", Root: "/var/lib/thinsnap", StartedAt: time.Now().Add(-time.Hour),
	}, metrics, admin.NewRecorder())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	t.Cleanup(func() {
		require.NoError(t, server.Shutdown(context.Background()))
		require.NoError(t, <-ended)
	})
	return address
}

func TestClientAndServer(t *testing.T) {
	used := uint64(4096)
	backend := &fakeBackend{snapshots: []admin.Snapshot{
		{Key: "default/2/b&c d", Kind: admin.KindActive, Parent: "default/1/a", DeviceID: 2, Size: 10 << 30},
		{Key: "default/1/a", Kind: admin.KindCommitted, DeviceID: 1, Size: 10 << 30, Used: &used, Labels: map[string]string{"k": "v"}},
	}}
	client := admin.NewClient(serve(t, backend, admin.NewMetrics(backend, "1.2.3", "abc")))

	info, err := client.Info(t.Context())
	require.NoError(t, err)
	require.Equal(t, "1.2.3", info.Daemon.Version)
	require.Equal(t, os.Getpid(), info.Daemon.PID)
	require.InDelta(t, 3600, info.Daemon.UptimeSeconds, 5)
	require.Equal(t, "thinsnap", info.Pool.Name)

	pool, err := client.Pool(t.Context())
	require.NoError(t, err)
	require.Equal(t, info.Pool, pool)

	snapshots, err := client.Snapshots(t.Context(), true)
	require.NoError(t, err)
	require.Len(t, snapshots, 2)
	require.Equal(t, "default/1/a", snapshots[0].Key, "the list is not sorted by key")
	require.Equal(t, &used, snapshots[0].Used)
	require.Nil(t, snapshots[1].Used)
	require.NotEmpty(t, snapshots[0].Labels)
	snapshots, err = client.Snapshots(t.Context(), false)
	require.NoError(t, err)
	require.Empty(t, snapshots[0].Labels)

	inspection, err := client.Inspect(t.Context(), "default/2/b&c d")
	require.NoError(t, err)
	require.Equal(t, "default/1/a", inspection.Parent)
	require.Equal(t, admin.RoleThin, inspection.Device.Role)
	require.NotNil(t, inspection.Chain)

	difference, err := client.Diff(t.Context(), "default/2/b&c d")
	require.NoError(t, err)
	require.Equal(t, admin.Difference{Key: "default/2/b&c d", Level: "walk", Changes: []admin.Change{}}, difference)
}

func TestExtendPool(t *testing.T) {
	backend := &fakeBackend{}
	client := admin.NewClient(serve(t, backend, admin.NewMetrics(backend, "", "")))
	pool, err := client.ExtendPool(t.Context(), admin.Extension{Data: 5 << 30})
	require.NoError(t, err)
	require.EqualValues(t, 5<<30, pool.Data.Total)
	require.Zero(t, pool.Metadata.Total)
	pool, err = client.ExtendPool(t.Context(), admin.Extension{Data: 5 << 30, Metadata: 1 << 30})
	require.NoError(t, err)
	require.EqualValues(t, 1<<30, pool.Metadata.Total)
	for _, want := range []admin.Extension{{}, {Data: 1 << 63}} {
		_, err = client.ExtendPool(t.Context(), want)
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	}
	backend.err = errdefs.ErrResourceExhausted.WithMessage("no room")
	_, err = client.ExtendPool(t.Context(), admin.Extension{Data: 1})
	require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
}

func TestLeftovers(t *testing.T) {
	backend := &fakeBackend{leftovers: []admin.Leftover{{DeviceID: 7, Mapped: 1 << 20, Size: 1 << 30, Found: time.Now().UTC().Round(0)}}}
	client := admin.NewClient(serve(t, backend, admin.NewMetrics(backend, "", "")))
	leftovers, err := client.Leftovers(t.Context())
	require.NoError(t, err)
	require.Equal(t, backend.leftovers, leftovers)
	_, err = client.RemoveLeftover(t.Context(), 8)
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	leftovers, err = client.RemoveLeftover(t.Context(), 7)
	require.NoError(t, err)
	require.Equal(t, []admin.Leftover{}, leftovers)
	backend.err = errdefs.ErrUnavailable
	_, err = client.Leftovers(t.Context())
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
}

func TestTrim(t *testing.T) {
	backend := &fakeBackend{}
	client := admin.NewClient(serve(t, backend, admin.NewMetrics(backend, "", "")))
	trimming, err := client.Trim(t.Context(), "default/2/b&c d")
	require.NoError(t, err)
	require.Equal(t, admin.Trimming{Key: "default/2/b&c d", Trimmed: 1 << 30, Unmapped: 1 << 20}, trimming)
	_, err = client.Trim(t.Context(), "")
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	backend.err = errdefs.ErrFailedPrecondition.WithMessage("it is not mounted")
	_, err = client.Trim(t.Context(), "box")
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
}

func TestFork(t *testing.T) {
	backend := &fakeBackend{}
	address := serve(t, backend, admin.NewMetrics(backend, "", ""))
	client := admin.NewClient(address)
	issued, err := client.Fork(t.Context(), "default/2/b&c d")
	require.NoError(t, err)
	require.Equal(t, admin.Fork{Token: "token of default/2/b&c d", Label: "from", Snapshotter: "thinsnap"}, issued)
	_, err = client.Fork(t.Context(), "")
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	status, _ := fetch(t, address, "/v1/fork?key=box")
	require.Equal(t, http.StatusNotImplemented, status, "a GET must not issue a token")
	backend.err = errdefs.ErrFailedPrecondition.WithMessage("it is a view")
	_, err = client.Fork(t.Context(), "box")
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
}

func TestErrorsKeepTheirClass(t *testing.T) {
	backend := &fakeBackend{}
	client := admin.NewClient(serve(t, backend, admin.NewMetrics(backend, "", "")))

	_, err := client.Inspect(t.Context(), "x")
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	require.EqualError(t, err, "snapshot x does not exist")
	_, err = client.Inspect(t.Context(), "")
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)

	for _, class := range []error{
		errdefs.ErrFailedPrecondition, errdefs.ErrUnavailable, errdefs.ErrResourceExhausted, errdefs.ErrInternal,
		errdefs.ErrNotImplemented,
	} {
		backend.err = class
		_, err = client.Pool(t.Context())
		require.ErrorIs(t, err, class)
		require.NotErrorIs(t, err, admin.ErrNoDaemon)
	}
	backend.err = errors.New("no class")
	_, err = client.Snapshots(t.Context(), true)
	require.ErrorIs(t, err, errdefs.ErrInternal)
	require.EqualError(t, err, "no class")
}

func TestNoDaemon(t *testing.T) {
	dir := t.TempDir()
	_, err := admin.NewClient(filepath.Join(dir, "none.sock")).Info(t.Context())
	require.ErrorIs(t, err, admin.ErrNoDaemon)
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.ErrorContains(t, err, "thinsnap serve")
}

func TestActivityAndHistory(t *testing.T) {
	backend := &fakeBackend{snapshots: []admin.Snapshot{{Key: "a", Labels: map[string]string{"k": "v"}}}}
	metrics := admin.NewMetrics(backend, "", "")
	metrics.Begin("Prepare", "a")("OK")
	defer metrics.Begin("Remove", "b")("OK")
	address := serve(t, backend, metrics)
	client := admin.NewClient(address)
	activity, err := client.Activity(t.Context())
	require.NoError(t, err)
	require.Equal(t, "b", activity.Running[0].Key)
	require.Equal(t, "Prepare", activity.Recent[0].Method)
	require.EqualValues(t, 3, activity.TrashTotal)
	require.Len(t, activity.Trash, 3)
	require.Less(t, len(activity.Trash[0].Key), 300, "the key is not shortened")

	history, err := client.History(t.Context())
	require.NoError(t, err)
	require.NotNil(t, history.Points)
	_, body := fetch(t, address, "/v1/snapshots")
	require.Contains(t, body, `"labels":{"k":"v"}`)
	_, body = fetch(t, address, "/v1/snapshots?labels=no")
	require.NotContains(t, body, "labels")
	status, body := fetch(t, address, "/")
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, body, "<title>thinsnap</title>")

	backend.err = errdefs.ErrUnavailable
	_, err = client.Activity(t.Context())
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
}

// TestFieldNames pins the names of JSON fields, which scripts use.
func TestFieldNames(t *testing.T) {
	encoded, err := json.Marshal(admin.Info{})
	require.NoError(t, err)
	require.JSONEq(t, `{
		"client": {"name": "", "configured": false, "snapshots": {"active": 0, "view": 0, "committed": 0}, "pid": 0, "alive": false,
			"unseen": false, "kept_snapshots": 0, "refused_calls": 0},
		"clients": null,
		"daemon": {"version": "", "root": "", "address": "", "pid": 0, "started_at": "0001-01-01T00:00:00Z", "uptime_seconds": 0},
		"pool": {"name": "", "mode": "", "state": "", "needs_check": false, "transaction_id": 0, "block_size_bytes": 0,
			"data": {"device": "", "used_bytes": 0, "size_bytes": 0, "available_bytes": 0, "holes_bytes": 0, "min_free_bytes": 0, "low_water_bytes": 0, "level": ""},
			"metadata": {"device": "", "used_bytes": 0, "size_bytes": 0, "available_bytes": 0, "holes_bytes": 0, "min_free_bytes": 0, "low_water_bytes": 0, "level": ""},
			"overpromised_bytes": 0, "events": 0, "autoextend": {"threshold_percent": 0, "step_percent": 0, "data_limit_bytes": 0,
				"data_extensions": 0, "metadata_extensions": 0}},
		"filesystem": {"type": "", "base_size_bytes": 0},
		"snapshots": {"active": 0, "view": 0, "committed": 0},
		"spares": {"hits": 0, "misses": 0},
		"background": {"running": 0, "waiting": 0, "deferred": 0, "deferred_removals": 0, "deferred_deletions": 0},
		"store": {"operations": 0, "transactions": 0, "reads": 0, "commit_seconds": 0, "size_bytes": 0},
		"differ": {"running": 0, "inodes": 0, "walked": 0, "left": 0, "failed": 0, "cancelled": 0, "mismatched": 0, "changed_bytes": 0,
			"read_bytes": 0, "written_bytes": 0},
		"volumes": {"active": 0, "spare": 0, "frozen": 0, "trash": 0, "kept": 0, "writes_lost": 0, "ids_used": 0, "ids_left": 0, "snapshots_left": 0},
		"driver": {"version": "", "udev_sync": false, "deferred_removal": false, "deferred_deletion": false}
	}`, string(encoded))
	encoded, err = json.Marshal(admin.Inspection{Chain: []string{}})
	require.NoError(t, err)
	require.JSONEq(t, `{"key": "", "client": "", "kind": "", "device_id": 0, "size_bytes": 0, "created_at": "0001-01-01T00:00:00Z",
		"updated_at": "0001-01-01T00:00:00Z", "chain": [],
		"device": {"role": "", "active": false, "read_only": false, "suspended": false, "open_count": 0}}`, string(encoded))
}

func TestEmptyListIsNotNull(t *testing.T) {
	backend := &fakeBackend{}
	status, body := fetch(t, serve(t, backend, admin.NewMetrics(backend, "", "")), "/v1/snapshots")
	require.Equal(t, http.StatusOK, status)
	require.JSONEq(t, `{"snapshots": []}`, body)
}

func TestMetrics(t *testing.T) {
	backend := &fakeBackend{}
	metrics := admin.NewMetrics(backend, "1.2.3", "abc")
	address := serve(t, backend, metrics)
	metrics.Begin("Prepare", "k")("OK")
	end := metrics.Begin("Commit", "k")

	status, body := fetch(t, address, "/metrics")
	require.Equal(t, http.StatusOK, status)
	for _, want := range []string{
		`thinsnap_build_info{revision="abc",version="1.2.3"} 1`,
		`thinsnap_operation_duration_seconds_count{client="default",method="Prepare",outcome="OK"} 1`,
		`thinsnap_operations_running{client="default",method="Commit"} 1`,
		`thinsnap_operations_running{client="default",method="Prepare"} 0`,
		`thinsnap_pool_up 1`,
		`thinsnap_pool_state{state="rw"} 1`,
		`thinsnap_pool_state{state="out_of_data_space"} 0`,
		`thinsnap_pool_used_bytes{device="data"} 1.048576e+06`,
		`thinsnap_pool_used_bytes{device="metadata"} 0`,
		`thinsnap_snapshots{client="default",kind="committed"} 1`,
		`thinsnap_snapshots{client="k3s",kind="committed"} 1`,
		`thinsnap_client_alive{client="default"} 1`,
		`thinsnap_client_alive{client="k3s"} 0`,
		`thinsnap_client_refused_calls_total{client="k3s"} 3`,
		`thinsnap_pool_growth_stuck 1`,
		`thinsnap_pool_extensions_total{device="data"} 4`,
		`thinsnap_pool_extensions_total{device="metadata"} 5`,
		`thinsnap_events_total 6`,
		`thinsnap_volumes{state="trash"} 3`,
		`thinsnap_volumes{state="spare"} 2`,
		`thinsnap_writes_lost_snapshots 8`,
		`thinsnap_spare_requests_total{result="hit"} 9`,
		`thinsnap_spare_requests_total{result="miss"} 1`,
		`thinsnap_volumes{state="deferred"} 4`,
		`thinsnap_volumes{state="removal-deferred"} 3`,
		`thinsnap_volumes{state="deletion-deferred"} 1`,
		`thinsnap_store_transactions_total 10`,
		`thinsnap_store_commit_seconds_total 0.5`,
		`thinsnap_store_size_bytes 65536`,
		`thinsnap_pool_low_water_bytes{device="data"} 2.147483648e+09`,
		`thinsnap_pool_min_free_bytes{device="data"} 1.073741824e+09`,
		`thinsnap_ioctls_total{command="DM_TABLE_STATUS"} 7`,
		`thinsnap_operation_duration_seconds_count{client="default",method="Remove",outcome="OK"} 0`,
		`thinsnap_trimmed_bytes_total 0`,
		`process_open_fds `,
		`go_goroutines `,
	} {
		require.Contains(t, body, "\n"+want)
	}
	end("Internal")
	require.NotContains(t, body, "thinsnap_check", "before the first check")
	client := admin.NewClient(address)
	_, err := client.Check(t.Context(), false)
	require.NoError(t, err)
	_, err = client.Trim(t.Context(), "k")
	require.NoError(t, err)
	_, body = fetch(t, address, "/metrics")
	for _, want := range []string{
		"thinsnap_check_findings 0", "thinsnap_check_timestamp_seconds 1", "thinsnap_trimmed_bytes_total 1.073741824e+09",
		"thinsnap_trim_unmapped_bytes_total 1.048576e+06",
	} {
		require.Contains(t, body, "\n"+want)
	}

	backend.err = errdefs.ErrUnavailable
	status, body = fetch(t, address, "/metrics")
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, body, "\nthinsnap_pool_up 0\n")
	require.NotContains(t, body, "thinsnap_pool_used_bytes")
	require.Contains(t, body, `thinsnap_operation_duration_seconds_count{client="default",method="Commit",outcome="Internal"} 1`)
}

func TestProfiles(t *testing.T) {
	backend := &fakeBackend{}
	address := serve(t, backend, admin.NewMetrics(backend, "", ""))
	status, body := fetch(t, address, "/debug/pprof/goroutine?debug=1")
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, body, "goroutine profile:")
}

// fetch gets a path from the admin socket, without the client of this package.
func fetch(t *testing.T, address, path string) (status int, body string) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", address)
		},
	}}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://localhost"+path, nil)
	require.NoError(t, err)
	response, err := client.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return response.StatusCode, string(text)
}

func TestCheck(t *testing.T) {
	backend := &fakeBackend{}
	client := admin.NewClient(serve(t, backend, admin.NewMetrics(backend, "1.2.3", "")))
	report, err := client.Check(t.Context(), false)
	require.NoError(t, err)
	require.NotNil(t, report.Findings, "null in JSON instead of an empty list")
	require.Empty(t, report.Repaired)
	report, err = client.Check(t.Context(), true)
	require.NoError(t, err)
	require.Equal(t, check.KindLoop, report.Repaired[0].Kind)
	backend.err = errdefs.ErrUnavailable.WithMessage("the pool has failed")
	_, err = client.Check(t.Context(), false)
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
}

func TestDecisionsAboutTheClient(t *testing.T) {
	backend := &fakeBackend{}
	client := admin.NewClient(serve(t, backend, admin.NewMetrics(backend, "", "")))
	accepted, err := client.AcceptClient(t.Context(), "k3s")
	require.NoError(t, err)
	require.Equal(t, admin.ClientInfo{Name: "k3s", Proxy: "thinsnap", PID: 812}, accepted)
	reset, err := client.ResetClient(t.Context(), "")
	require.NoError(t, err)
	require.EqualValues(t, 4, reset.KeptSnapshots)
	backend.err = errdefs.ErrFailedPrecondition.WithMessage("no client has used the store")
	_, err = client.AcceptClient(t.Context(), "k3s")
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
}
