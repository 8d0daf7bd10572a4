package main

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/check"
	"github.com/thinsnap/thinsnap/internal/unixsocket"
)

const (
	layerKey     = "default/1/sha256:1111111111111111111111111111111111111111111111111111111111111111"
	layer2Key    = "default/2/sha256:2222222222222222222222222222222222222222222222222222222222222222"
	containerKey = "default/3/box"
	viewKey      = "default/4/look"
)

// fakeReports is a daemon with two layers, a container on the upper one, and a view of it.
type fakeReports struct{}

func known(bytes uint64) *uint64 { return &bytes }

func (fakeReports) Info(ctx context.Context) (admin.Info, error) {
	pool, err := fakeReports{}.Pool(ctx)
	return admin.Info{
		Pool: pool,
		Client: admin.ClientInfo{
			Name: "default", Configured: true, Proxy: "thinsnap", PID: 812, Program: "/usr/bin/containerd", Since: time.Now(), Alive: true,
		},
		Clients: []admin.ClientInfo{
			{Name: "k3s", Configured: true, Address: "/run/thinsnap/k3s.sock", Snapshots: admin.SnapshotCounts{Active: 1}},
			{Name: "moby", Snapshots: admin.SnapshotCounts{Committed: 2}},
		},
		Filesystem: admin.Filesystem{Type: "ext4", BaseSize: 10 << 30, BaseUUID: "0f0e0d0c-1111-2222-3333-444455556666"},
		Snapshots:  admin.SnapshotCounts{Active: 1, View: 1, Committed: 2},
		Devices:    admin.Volumes{Active: 2, Spares: 1, Trash: 1, IDsUsed: 64, IDsLeft: 1<<24 - 64, SnapshotsLeft: 1<<24 - 1100},
		Background: admin.Background{Deferred: 3, DeferredRemovals: 2, DeferredDeletions: 1},
		Driver:     admin.Driver{Version: "ioctl 4.47.0", UdevSync: true, DeferredRemoval: true, DeferredDeletion: true},
	}, err
}

func (fakeReports) Pool(context.Context) (admin.Pool, error) {
	return admin.Pool{
		Name: "thinsnap", UUID: "THINSNAP-pool", Mode: "loop", State: admin.StateReadWrite, TransactionID: 7,
		BlockSize:  64 << 10,
		Autoextend: admin.Autoextend{Threshold: 80, Percent: 20, DataLimit: 1 << 40, DataExtensions: 3},
		Data:       admin.Space{Device: "/dev/loop0", LoopFile: "/var/lib/thinsnap/pool/data", Used: 300 << 20, Total: 100 << 30, Available: 20 << 30, MinFree: 10 << 30, LowWater: 2 << 30, Level: admin.LevelOK},
		Metadata:   admin.Space{Device: "/dev/loop1", LoopFile: "/var/lib/thinsnap/pool/metadata", Used: 1 << 20, Total: 2 << 30, Available: 2<<30 - 1<<20, Level: admin.LevelOK},
	}, nil
}

func (fakeReports) Snapshots(context.Context, bool) ([]admin.Snapshot, error) {
	made := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return []admin.Snapshot{
		{Key: containerKey, Kind: admin.KindActive, Parent: layer2Key, DeviceID: 3, Size: 10 << 30, Created: made, Updated: made},
		{Key: viewKey, Kind: admin.KindView, Parent: layer2Key, DeviceID: 2, Size: 10 << 30, Used: known(0), Shared: known(121 << 20), Exclusive: known(0), Created: made, Updated: made},
		{Key: layer2Key, Kind: admin.KindCommitted, Parent: layerKey, DeviceID: 2, Size: 10 << 30, Used: known(1 << 20), Shared: known(120 << 20), Exclusive: known(64 << 10), Created: made, Updated: made},
		{Key: layerKey, Kind: admin.KindCommitted, DeviceID: 1, Size: 10 << 30, Used: known(120 << 20), Shared: known(0), Created: made, Updated: made},
	}, nil
}

func (fakeReports) Inspect(ctx context.Context, key string) (admin.Inspection, error) {
	snapshots, err := fakeReports{}.Snapshots(ctx, true)
	if err != nil {
		return admin.Inspection{}, err
	}
	for _, s := range snapshots {
		switch {
		case s.Key == key && key == layerKey:
			return admin.Inspection{Snapshot: s, Device: admin.Device{Role: admin.RoleThin, Path: "/dev/mapper/thinsnap-snap-1"}}, nil
		case s.Key == key:
			return admin.Inspection{
				Snapshot: s, Chain: []string{layer2Key, layerKey}, MappedBytes: known(121 << 20),
				Device: admin.Device{
					Role: admin.RoleThin, Name: "thinsnap-snap-3", UUID: "THINSNAP-pool-3", Number: "254:3",
					Path: "/dev/mapper/thinsnap-snap-3", Active: true, OpenCount: 1,
					Table: []string{"0 20971520 thin 254:0 3"}, Status: []string{"0 20971520 thin 247808 20971519"},
					Below: []admin.Device{{
						Role: admin.RolePool, Name: "thinsnap", Number: "254:0", Path: "/dev/mapper/thinsnap", Active: true,
						Table: []string{"0 209715200 thin-pool 7:1 7:0 128 0"}, Status: []string{"0 209715200 thin-pool 7 256/524288 4800/1638400 - rw"},
						Below: []admin.Device{
							{Role: admin.RoleData, Number: "7:0", Path: "/dev/loop0", Active: true, Below: []admin.Device{
								{Role: admin.RoleFile, Path: "/var/lib/thinsnap/pool/data", Active: true},
							}},
							{Role: admin.RoleMetadata, Number: "7:1", Path: "/dev/loop1", Active: true, Below: []admin.Device{
								{Role: admin.RoleFile, Path: "/var/lib/thinsnap/pool/metadata", Active: true},
							}},
						},
					}},
				},
			}, nil
		}
	}
	return admin.Inspection{}, errdefs.ErrNotFound.WithMessage("snapshot " + key + " does not exist")
}

func (fakeReports) Diff(_ context.Context, key string) (admin.Difference, error) {
	if key != containerKey {
		return admin.Difference{}, errdefs.ErrNotFound.WithMessage("snapshot " + key + " does not exist")
	}
	return admin.Difference{Key: key, Parent: layer2Key, Level: "walk", Changes: []admin.Change{
		{Kind: admin.ChangeChanged, Path: "/etc"}, {Kind: admin.ChangeAdded, Path: "/etc/new"},
		{Kind: admin.ChangeDeleted, Path: "/etc/o\ufffdd", PathBytes: []byte("/etc/o\xffd")},
	}}, nil
}

func (fakeReports) Check(_ context.Context, repair bool) (check.Report, error) {
	loop := check.Finding{
		Kind: check.KindLoop, Subject: "loop device /dev/loop7", Path: "/dev/loop7",
		Text: "uses the pool's file /var/lib/thinsnap/pool/data, but is not one of the pool's loop devices", Repair: "detach it",
	}
	lost := check.Finding{
		Kind: check.KindMissing, Subject: `snapshot "` + layerKey + `"`, DeviceID: 1, Text: "its volume 1 is not in the pool",
	}
	trash := check.Finding{
		Kind: check.KindTrash, Subject: `removed snapshot "default/9/old"`, DeviceID: 9, Text: "its volume waits for deletion",
	}
	report := check.Report{
		Findings: []check.Finding{loop, lost}, Pending: []check.Finding{trash}, Repaired: []check.Finding{},
		Examined: check.Examined{Snapshots: 4, Volumes: 4, Mappings: 1940, Devices: 2},
	}
	if repair {
		report.Findings, report.Repaired = []check.Finding{lost}, []check.Finding{loop}
	}
	return report, nil
}

func (fakeReports) ExtendPool(ctx context.Context, want admin.Extension) (admin.Pool, error) {
	pool, err := fakeReports{}.Pool(ctx)
	pool.Data.Total = max(pool.Data.Total, want.Data)
	pool.Metadata.Total = max(pool.Metadata.Total, want.Metadata)
	return pool, err
}

func (fakeReports) Trim(_ context.Context, key string) (admin.Trimming, error) {
	switch key {
	case containerKey:
		return admin.Trimming{Key: key, DeviceID: 3, Trimmed: 9 << 30, Unmapped: 30 << 20, Stopped: "it was committed"}, nil
	case layerKey:
		return admin.Trimming{}, errdefs.ErrFailedPrecondition.WithMessage("trim snapshot " + key + ": it never changes")
	}
	return admin.Trimming{}, errdefs.ErrUnavailable.WithMessage("trim snapshot " + key + ": the disk hangs")
}

func (fakeReports) Fork(_ context.Context, key string) (admin.Fork, error) {
	if key != containerKey {
		return admin.Fork{}, errdefs.ErrFailedPrecondition.WithMessage("fork snapshot " + key + ": it is not active")
	}
	return admin.Fork{
		Token: "secret", Label: "containerd.io/snapshot/thinsnap/from", Snapshotter: "thinsnap",
		ExpiresAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}, nil
}

func (fakeReports) Owners(context.Context) (admin.Owners, error) {
	return admin.Owners{Owners: []admin.Owner{
		{Key: layerKey, Namespace: "default", Images: []string{"docker.io/library/debian:12", "docker.io/library/python:3"}},
		{Key: layer2Key, Namespace: "default", Images: []string{"docker.io/library/python:3"}},
		{Key: containerKey, Namespace: "default", Container: &admin.Container{
			ID: "c0ffee", Name: "web", Image: "docker.io/library/python:3", Pod: "shop-1", PodNamespace: "prod",
		}},
	}}, nil
}

func (fakeReports) Leftovers(context.Context) ([]admin.Leftover, error) {
	return []admin.Leftover{{DeviceID: 12, Mapped: 30 << 20, Size: 9 << 30, Found: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}}, nil
}

func (fakeReports) RemoveLeftover(_ context.Context, id uint32) ([]admin.Leftover, error) {
	if id != 12 {
		return nil, errdefs.ErrNotFound.WithMessage(fmt.Sprintf("leftover volume %d: not found", id))
	}
	return nil, nil
}

func (fakeReports) Trash(context.Context, int) ([]admin.Removed, error) {
	return []admin.Removed{{Key: "default/9/old", DeviceID: 9, Since: time.Now().Add(-time.Minute)}}, nil
}

func (fakeReports) Fill(context.Context, time.Duration) (admin.Fill, error) {
	return admin.Fill{DataUsed: 300 << 20, DataTotal: 100 << 30, DataAvailable: 20 << 30, MetadataUsed: 1 << 20, MetadataTotal: 2 << 30}, nil
}

func (fakeReports) AcceptClient(_ context.Context, name string) (admin.ClientInfo, error) {
	return admin.ClientInfo{
		Name: name, Configured: true,
		Proxy: "thinsnap", PID: 812, Program: "/usr/bin/containerd", Since: time.Now(), Alive: true, RefusedCalls: 2,
		LastRefused: `process 900 (/usr/local/bin/containerd) as proxy plugin "thinsnap"`,
	}, nil
}

func (fakeReports) RemoveClient(_ context.Context, name string) (admin.RemovedClient, error) {
	return admin.RemovedClient{Name: name, Snapshots: 2}, nil
}

func (fakeReports) ResetClient(_ context.Context, name string) (admin.ClientInfo, error) {
	return admin.ClientInfo{Name: name, Configured: true, KeptSnapshots: 4}, nil
}

func (fakeReports) Ioctls() map[string]uint64 { return nil }

// fakeDaemon serves an admin socket, and returns its address.
func fakeDaemon(t *testing.T) string {
	t.Helper()
	return fakeDaemonOf(t, fakeReports{})
}

func fakeDaemonOf(t *testing.T, reports admin.Backend) string {
	t.Helper()
	address := filepath.Join(t.TempDir(), "admin.sock")
	l, err := unixsocket.Listen(t.Context(), address)
	require.NoError(t, err)
	server := admin.NewServer(t.Context(), reports, admin.Daemon{
		Version: "1.2.3", Root: "/var/lib/thinsnap", Address: "/run/thinsnap/thinsnap.sock",
		StartedAt: time.Now().Add(-90*time.Minute - 500*time.Millisecond),
	}, admin.NewMetrics(reports, "1.2.3", ""), admin.NewRecorder())
	s := newServers(func(string) {}, 0)
	s.start(l, server)
	t.Cleanup(func() { s.stop(context.Background()) })
	return address
}

type result struct {
	code     int
	out, err string
}

func try(t *testing.T, terminal bool, b backend, args ...string) result {
	t.Helper()
	var out, errOut bytes.Buffer
	a := &app{out: &out, errOut: &errOut, terminal: terminal, backend: b}
	code := a.run(t.Context(), append([]string{"thinsnap"}, args...))
	return result{code, out.String(), errOut.String()}
}

// output runs a command line that must succeed, and returns its output without trailing blanks.
func output(t *testing.T, terminal bool, args ...string) string {
	t.Helper()
	return outputOf(t, terminal, false, args...)
}

// outputOf is output, with colours or without.
func outputOf(t *testing.T, terminal bool, colour palette, args ...string) string {
	t.Helper()
	var out, errOut bytes.Buffer
	a := &app{out: &out, errOut: &errOut, terminal: terminal, colour: colour}
	require.Equal(t, exitOK, a.run(t.Context(), append([]string{"thinsnap"}, args...)))
	require.Empty(t, errOut.String())
	lines := strings.Split(out.String(), "\n")
	for i, line := range lines {
		lines[i] = strings.TrimRight(line, " ")
	}
	return strings.Join(lines, "\n")
}
