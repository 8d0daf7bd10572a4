package admin

import (
	"context"
	"testing"
	"time"

	"github.com/thinsnap/thinsnap/internal/check"
)

// exampleBackend answers with the examples of docs/api.md.
type exampleBackend struct{ Backend }

func exampleDaemon() Daemon {
	return Daemon{
		Version: "0.1.0", Root: "/var/lib/thinsnap", Address: "/run/thinsnap/thinsnap.sock", PID: 812,
		StartedAt: exampleTime(),
	}
}

func exampleClient() ClientInfo {
	return ClientInfo{
		Name: "default", Address: "/run/thinsnap/thinsnap.sock", Configured: true,
		Snapshots: SnapshotCounts{Active: 3, View: 1, Committed: 9},
		Proxy:     "thinsnap", PID: 640, Program: "/usr/bin/containerd", Installation: "7b0a9f3e-3a52-4d0f-a6a5-9a4f2d1c8e77",
		Since: exampleTime(), Alive: true,
	}
}

func (exampleBackend) Info(ctx context.Context) (Info, error) {
	pool, err := exampleBackend{}.Pool(ctx)
	return Info{
		Client: exampleClient(), Pool: pool,
		Filesystem: Filesystem{Type: "ext4", BaseSize: 10 << 30, BaseUUID: "c8f5fcd7-8997-4e19-acf5-5c02c9c867db"},
		Snapshots:  SnapshotCounts{Active: 3, View: 1, Committed: 9},
		Devices:    Volumes{Active: 11, Spares: 6, Trash: 1, IDsUsed: 64, IDsLeft: 16777151, SnapshotsLeft: 16776190},
		Spares:     Spares{Hits: 9, Misses: 7},
		Background: Background{Deferred: 1, DeferredDeletions: 1},
		Store:      Store{Operations: 49, Transactions: 41, Reads: 182, CommitSeconds: 0.279, Bytes: 16814080},
		Differ:     Differ{Inodes: 2, Changed: 41943040, Read: 12582912, Written: 8388608},
		Driver:     Driver{Version: "ioctl 4.47.0", UdevSync: true, DeferredRemoval: true, DeferredDeletion: true},
	}, err
}

func (exampleBackend) Pool(context.Context) (Pool, error) {
	return Pool{
		Name: "thinsnap", UUID: "THINSNAP-7QVE6GJVBYKABQECHGXTQJH4OJ-pool", Mode: "loop", State: StateReadWrite,
		TransactionID: 1, BlockSize: 64 << 10,
		Data: Space{
			Device: "/dev/loop1", LoopFile: "/var/lib/thinsnap/pool/data", Used: 1677721600, Total: 2 << 30,
			Available: 469762048, MinFree: 214748364, LowWater: 429496730, Level: LevelOK,
		},
		Metadata: Space{
			Device: "/dev/loop0", LoopFile: "/var/lib/thinsnap/pool/metadata", Used: 6946816, Total: 64 << 20,
			Available: 60162048, MinFree: 6710886, LowWater: 4 << 20, Level: LevelOK,
		},
		Events: 3, Autoextend: Autoextend{Threshold: 80, Percent: 20, DataLimit: 100 << 30, DataExtensions: 1},
	}, nil
}

func exampleSnapshot() Snapshot {
	used, shared := uint64(2<<20), uint64(120<<20)
	return Snapshot{
		Client: "default",
		Key:    "default/7/box", Kind: KindActive, Parent: "default/4/sha256:9d4f", DeviceID: 24, Size: 10 << 30,
		Used: &used, Shared: &shared, Exclusive: &used, Created: exampleTime(), Updated: exampleTime(),
	}
}

func (exampleBackend) Snapshots(context.Context, bool) ([]Snapshot, error) {
	return []Snapshot{exampleSnapshot()}, nil
}

func (exampleBackend) Owners(context.Context) (Owners, error) {
	return Owners{Owners: []Owner{
		{Key: "default/4/sha256:9d4f", Namespace: "default", Images: []string{"example.com/web:1"}},
		{Key: "default/7/box", Namespace: "default", Container: &Container{
			ID: "box", Image: "example.com/web:1",
		}},
	}}, nil
}

func (exampleBackend) Inspect(context.Context, string) (Inspection, error) {
	mapped := uint64(122 << 20)
	return Inspection{
		Snapshot: exampleSnapshot(), Chain: []string{"default/4/sha256:9d4f"}, MappedBytes: &mapped,
		Device: Device{
			Role: RoleThin, Name: "thinsnap-snap-24", UUID: "THINSNAP-7QVE6GJVBYKABQECHGXTQJH4OJ-24", Number: "254:5",
			Path: "/dev/mapper/thinsnap-snap-24", Active: true, OpenCount: 1, Table: []string{"0 20971520 thin 254:0 24"},
			Status: []string{"0 20971520 thin 249856 20971519"},
			Below:  []Device{{Role: RolePool, Name: "thinsnap", Number: "254:0", Path: "/dev/mapper/thinsnap", Active: true}},
		},
	}, nil
}

func (exampleBackend) Diff(context.Context, string) (Difference, error) {
	return Difference{
		Key: "default/7/box", Parent: "default/4/sha256:9d4f", Level: "walk", Changed: 2 << 20, Read: 1 << 20,
		Changes: []Change{{Kind: ChangeChanged, Path: "/etc"}, {Kind: ChangeAdded, Path: "/etc/hostname"}},
	}, nil
}

func (exampleBackend) Trash(context.Context, int) ([]Removed, error) {
	return []Removed{{Key: "default/6/old", Client: "default", DeviceID: 21, Since: exampleTime()}}, nil
}

func (exampleBackend) Check(_ context.Context, repair bool) (check.Report, error) {
	found := check.Finding{
		Kind: check.KindLoop, Subject: "loop device /dev/loop7", Path: "/dev/loop7",
		Text: "it is a second loop device on the pool's data file", Repair: "detach it",
	}
	r := check.Report{
		Findings: []check.Finding{found}, Pending: []check.Finding{}, Repaired: []check.Finding{},
		Examined: check.Examined{Snapshots: 13, Volumes: 20, Mappings: 25600, Devices: 12},
	}
	if repair {
		r.Findings, r.Repaired = r.Pending, r.Findings
	}
	return r, nil
}

func (exampleBackend) ExtendPool(ctx context.Context, want Extension) (Pool, error) {
	pool, err := exampleBackend{}.Pool(ctx)
	pool.Data.Total, pool.Metadata.Total = want.Data, want.Metadata
	return pool, err
}

func (exampleBackend) Trim(_ context.Context, key string) (Trimming, error) {
	return Trimming{Key: key, DeviceID: 24, Trimmed: 1 << 30, Unmapped: 64 << 20}, nil
}

func (exampleBackend) Fork(context.Context, string) (Fork, error) {
	return Fork{
		Token: "q3Zk…", Label: "containerd.io/snapshot/thinsnap/from", Snapshotter: "thinsnap",
		ExpiresAt: exampleTime().Add(time.Minute),
	}, nil
}

func (exampleBackend) Leftovers(context.Context) ([]Leftover, error) {
	return []Leftover{{DeviceID: 61, Mapped: 30 << 20, Size: 9 << 30, Found: exampleTime()}}, nil
}

func (exampleBackend) RemoveLeftover(context.Context, uint32) ([]Leftover, error) { return nil, nil }

func (exampleBackend) AcceptClient(context.Context, string) (ClientInfo, error) {
	return exampleClient(), nil
}

func (exampleBackend) ResetClient(context.Context, string) (ClientInfo, error) {
	return ClientInfo{Name: "default", Configured: true}, nil
}

func (exampleBackend) RemoveClient(context.Context, string) (RemovedClient, error) {
	return RemovedClient{Name: "k3s", Snapshots: 12}, nil
}

func exampleMetrics(t *testing.T) *Metrics {
	t.Helper()
	m := NewMetrics(exampleBackend{}, "0.1.0", "")
	call := RunningCall{Method: "Prepare", Client: "default", Key: "default/7/box", StartedAt: exampleTime()}
	m.calls.total, m.calls.running[1] = 1, call
	call.Method, call.Key = "Remove", "default/6/old"
	m.calls.recent = []EndedCall{{RunningCall: call, Seconds: 0.0056, Outcome: "OK"}}
	m.calls.totals["Remove"] = &CallTotal{Method: "Remove", Ended: 1, Seconds: 0.0056}
	return m
}

func exampleRecorder() *Recorder {
	r := NewRecorder()
	r.add(Fill{
		At: exampleTime(), DataUsed: 1677721600, MetadataUsed: 6946816, DataAvailable: 469762048, DataTotal: 2 << 30,
		MetadataTotal: 64 << 20,
	})
	return r
}
