package main

import (
	"context"
	"encoding/json"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/admin"
)

func TestInfo(t *testing.T) {
	address := fakeDaemon(t)
	require.Equal(t, `Version: 1.2.3
Root Directory: /var/lib/thinsnap
Address: /run/thinsnap/thinsnap.sock
Uptime: 1h30m0s
Snapshots: 4
 Active: 1
 View: 1
 Committed: 2
Client: process 812, /usr/bin/containerd; proxy plugin thinsnap
 Snapshots Kept From Before: 0
 Refused Calls of Others: 0
Client k3s: none yet
 Address: /run/thinsnap/k3s.sock
 Snapshots: 1
 Snapshots Kept From Before: 0
 Refused Calls of Others: 0
Client moby: not configured; "thinsnap client remove moby" removes its snapshots
 Snapshots: 2
`+poolText+`Base Device Size: 10GiB
Base Device UUID: 0f0e0d0c-1111-2222-3333-444455556666
Backing Filesystem: ext4
Active Devices: 2
Spare Devices: 1
Frozen Copies: 0
Device IDs Used: 64
Device IDs Left: 16777152
Snapshots Left: 16776116
Udev Sync Supported: true
Deferred Removal Enabled: true
Deferred Removed Device Count: 2
Deferred Deletion Enabled: true
Deferred Deleted Device Count: 1
 In Use: 1
Kept Leftover Count: 0
Library Version: ioctl 4.47.0
`, output(t, false, "--admin-address", address, "info"))

	var info admin.Info
	require.NoError(t, json.Unmarshal([]byte(output(t, false, "info", "--json", "--admin-address", address)), &info))
	require.Equal(t, uint64(100<<30), info.Pool.Data.Total)
}

const poolText = `Pool Name: thinsnap
Pool Mode: loop
Pool State: rw
Pool Transaction ID: 7
Pool Blocksize: 64KiB
Data file: /dev/loop0
Metadata file: /dev/loop1
Data loop file: /var/lib/thinsnap/pool/data
Metadata loop file: /var/lib/thinsnap/pool/metadata
Data Space Used: 300MiB
Data Space Total: 100GiB
Data Space Available: 20GiB
Metadata Space Used: 1MiB
Metadata Space Total: 2GiB
Metadata Space Available: 1.999GiB
Thin Pool Minimum Free Space: 10GiB
Thin Pool Autoextend: at 80% by 20%, data up to 1TiB
Thin Pool Extensions: 3 of data, 0 of metadata
`

func TestPoolStatus(t *testing.T) {
	address := fakeDaemon(t)
	require.Equal(t, poolText, output(t, false, "pool", "status", "--admin-address", address))
	var pool admin.Pool
	require.NoError(t, json.Unmarshal([]byte(output(t, false, "pool", "status", "--json", "--admin-address", address)), &pool))
	require.Equal(t, "THINSNAP-pool", pool.UUID)
}

func TestPoolExtend(t *testing.T) {
	address := fakeDaemon(t)
	extend := func(args ...string) result {
		return try(t, false, backend{}, append([]string{"pool", "extend", "--admin-address", address}, args...)...)
	}
	require.Contains(t, extend("--data", "200GiB").out, "Data Space Total: 200GiB\nData Space Available: 20GiB\n")
	require.Contains(t, extend("--data", "+50GiB").out, "Data Space Total: 150GiB\n")
	var pool admin.Pool
	require.NoError(t, json.Unmarshal([]byte(extend("--metadata", "+1GiB", "--json").out), &pool))
	require.EqualValues(t, 3<<30, pool.Metadata.Total)
	require.EqualValues(t, 100<<30, pool.Data.Total)
	for want, args := range map[string][]string{
		"nothing to do":                nil,
		`--data: "much" is not a size`: {"--data", "much"},
		`--metadata: "+0" is zero`:     {"--metadata", "+0"},
	} {
		got := extend(args...)
		require.Equal(t, exitUsage, got.code)
		require.Contains(t, got.err, want)
	}
}

func TestPoolTrim(t *testing.T) {
	address := fakeDaemon(t)
	require.Equal(t, `KEY            DEVICE  TRIMMED  UNMAPPED  ENDED EARLY
default/3/box       3     9GiB     30MiB  it was committed
Snapshots Trimmed: 1
Data Space Used Before: 300MiB
Data Space Used: 300MiB
`, output(t, false, "pool", "trim", "--admin-address", address), "only the active snapshots")

	var done poolTrim
	require.NoError(t, json.Unmarshal([]byte(output(t, false, "pool", "trim", "--json", "--admin-address", address, containerKey)), &done))
	require.EqualValues(t, 30<<20, done.Snapshots[0].Unmapped)
	require.EqualValues(t, 300<<20, done.UsedAfter)

	got := try(t, false, backend{}, "pool", "trim", "--admin-address", address, layerKey, containerKey)
	require.Equal(t, exitFailure, got.code)
	require.Contains(t, got.out, containerKey, "a failure does not stop the rest")
	require.Equal(t, "thinsnap: trim snapshot "+layerKey+": it never changes\n", got.err)
	got = try(t, false, backend{}, "pool", "trim", "--admin-address", address, viewKey, layerKey, containerKey)
	require.Equal(t, exitFailure, got.code)
	require.Contains(t, got.out, containerKey, "a failure does not stop the rest")
	require.Contains(t, got.out, "\nSnapshots Trimmed: 1\n")
	require.Equal(t, "thinsnap: trim snapshot "+viewKey+": the disk hangs; trim snapshot "+layerKey+": it never changes\n", got.err)
}

// trimReports is a daemon with more active snapshots. Trims of other snapshots than the fake's
// container return err.
type trimReports struct {
	fakeReports
	err   error
	asked *atomic.Int32
}

func (trimReports) Snapshots(context.Context, bool) ([]admin.Snapshot, error) {
	return []admin.Snapshot{{Key: viewKey, Kind: admin.KindActive}, {Key: layerKey, Kind: admin.KindActive}, {Key: containerKey, Kind: admin.KindActive}}, nil
}

func (r trimReports) Trim(ctx context.Context, key string) (admin.Trimming, error) {
	r.asked.Add(1)
	if key == containerKey {
		return r.fakeReports.Trim(ctx, key)
	}
	return admin.Trimming{}, r.err
}

func TestPoolTrimOfAllContinues(t *testing.T) {
	trim := func(err error) (result, int32) {
		reports := trimReports{err: err, asked: new(atomic.Int32)}
		got := try(t, false, backend{}, "pool", "trim", "--admin-address", fakeDaemonOf(t, reports))
		return got, reports.asked.Load()
	}
	got, asked := trim(errdefs.ErrUnavailable.WithMessage("input/output error"))
	require.EqualValues(t, 3, asked)
	require.Equal(t, exitFailure, got.code)
	require.Contains(t, got.out, containerKey)
	require.Contains(t, got.out, "\nSnapshots Trimmed: 1\n")
	require.Equal(t, "thinsnap: input/output error; input/output error\n", got.err)

	got, _ = trim(errdefs.ErrNotFound.WithMessage("it was removed"))
	require.Equal(t, exitOK, got.code, "it was not named")
	got, asked = trim(errdefs.ErrNotImplemented.WithMessage("the pool takes no discards"))
	require.EqualValues(t, 1, asked, "the others would fail, too")
	require.Equal(t, exitFailure, got.code)
	require.Contains(t, got.out, "Snapshots Trimmed: 0\n")
	require.Equal(t, "thinsnap: the pool takes no discards\n", got.err)
}

func TestAutoextendRow(t *testing.T) {
	require.Equal(t, "managed externally", autoextend(&admin.Pool{Mode: "existing", Autoextend: admin.Autoextend{Threshold: 100}}))
	require.Equal(t, "off", autoextend(&admin.Pool{Autoextend: admin.Autoextend{Threshold: 100, Percent: 20}}))
	require.Equal(t, "at 70% by 10%", autoextend(&admin.Pool{Autoextend: admin.Autoextend{Threshold: 70, Percent: 10}}))
	require.Equal(t, "stuck: no room", autoextend(&admin.Pool{Autoextend: admin.Autoextend{Threshold: 70, Stuck: "no room"}}))
}

func TestPoolRowsOfReadOnlyPool(t *testing.T) {
	rows := poolRows(&admin.Pool{State: admin.StateReadOnly, NeedsCheck: true, Data: admin.Space{Device: "/dev/sdb"}}, false)
	require.Contains(t, rows, row{"Pool State", "ro, needs_check"})
	require.Contains(t, rows, row{"Thin Pool Minimum Free Space", "none"})
	require.Contains(t, rows, row{"Data loop file", ""}, "printRows omits it")
}

// refusing is a daemon with a faulty pool.
type refusing struct {
	fakeReports
	change func(p *admin.Pool)
}

func (r refusing) Pool(ctx context.Context) (admin.Pool, error) {
	p, err := r.fakeReports.Pool(ctx)
	r.change(&p)
	return p, err
}

// TestPoolStatusCheck: --check sets the exit code and prints the reason, for probes. The other
// output stays the same.
func TestPoolStatusCheck(t *testing.T) {
	for want, change := range map[string]func(p *admin.Pool){
		"": func(*admin.Pool) {},
		"thinsnap: new snapshots are refused: the pool has 1 byte left: remove snapshots\n": func(p *admin.Pool) {
			p.Refusal = "the pool has 1 byte left: remove snapshots"
		},
		// From a daemon of an older version.
		"thinsnap: the pool is fail: see `thinsnap pool status`\n":            func(p *admin.Pool) { p.State = admin.StateFailed },
		"thinsnap: the pool is ro: see `thinsnap pool status`\n":              func(p *admin.Pool) { p.State = admin.StateReadOnly },
		"thinsnap: the pool is rw, needs_check: see `thinsnap pool status`\n": func(p *admin.Pool) { p.NeedsCheck = true },
	} {
		address := fakeDaemonOf(t, refusing{change: change})
		for _, form := range [][]string{nil, {"--json"}} {
			args := append([]string{"pool", "status", "--admin-address", address}, form...)
			plain := try(t, false, backend{}, args...)
			require.Equal(t, result{exitOK, plain.out, ""}, plain, want)
			code := exitOK
			if want != "" {
				code = exitFailure
			}
			require.Equal(t, result{code, plain.out, want}, try(t, false, backend{}, append(args, "--check")...))
		}
	}
	got := try(t, false, backend{}, "pool", "status", "--check", "--admin-address", filepath.Join(t.TempDir(), "none.sock"))
	require.Equal(t, exitUnavailable, got.code)
}

func TestLs(t *testing.T) {
	address := fakeDaemon(t)
	require.Equal(t, `KEY                             KIND       DEVICE   SIZE    USED  EXCLUSIVE  BELONGS TO
default/1/sha256:111111111111…  committed       1  10GiB  120MiB          -  image docker.io/library/debian:12 and 1 other
default/2/sha256:222222222222…  committed       2  10GiB    1MiB      64KiB  image docker.io/library/python:3
default/3/box                   active          3  10GiB       -          -  pod prod/shop-1: web
default/4/look                  view            2  10GiB      0B         0B  -
`, output(t, true, "ls", "--admin-address", address))

	for _, whole := range []string{
		output(t, false, "ls", "--admin-address", address),
		output(t, true, "ls", "--no-trunc", "--admin-address", address),
		output(t, true, "ls", "--json", "--admin-address", address),
	} {
		require.Contains(t, whole, layerKey)
		require.Contains(t, whole, layer2Key)
	}
}

// severalReports is a daemon with snapshots of two clients.
type severalReports struct{ fakeReports }

func (severalReports) Snapshots(context.Context, bool) ([]admin.Snapshot, error) {
	return []admin.Snapshot{
		{Key: "default/1/box", Client: "default", Kind: admin.KindActive, DeviceID: 1, Size: 10 << 30},
		{Key: "@k3s/default/1/box", Client: "k3s", Kind: admin.KindActive, DeviceID: 2, Size: 10 << 30},
	}, nil
}

// TestLsOfSeveralClients: with several clients, the list has a column for them.
func TestLsOfSeveralClients(t *testing.T) {
	require.Equal(t, `KEY                 KIND    DEVICE   SIZE  USED  EXCLUSIVE  CLIENT   BELONGS TO
@k3s/default/1/box  active       2  10GiB     -          -  k3s               -
default/1/box       active       1  10GiB     -          -  default           -
`, output(t, true, "ls", "--admin-address", fakeDaemonOf(t, severalReports{})))
}

// lossyReports is a daemon with a container that may have lost writes.
type lossyReports struct{ fakeReports }

func (lossyReports) Info(ctx context.Context) (admin.Info, error) {
	info, err := fakeReports{}.Info(ctx)
	info.Devices.WritesLost = 1
	return info, err
}

func (lossyReports) Snapshots(ctx context.Context, labels bool) ([]admin.Snapshot, error) {
	all, err := fakeReports{}.Snapshots(ctx, labels)
	all[0].WritesLost = true
	return all, err
}

func (lossyReports) Inspect(ctx context.Context, key string) (admin.Inspection, error) {
	inspection, err := fakeReports{}.Inspect(ctx, key)
	inspection.WritesLost = key == containerKey
	return inspection, err
}

// TestLostWritesAreShown: an operator finds the containers that may have lost writes.
func TestLostWritesAreShown(t *testing.T) {
	address := fakeDaemonOf(t, lossyReports{})
	require.Equal(t, `KEY                             KIND       DEVICE   SIZE    USED  EXCLUSIVE  LOST WRITES  BELONGS TO
default/1/sha256:111111111111…  committed       1  10GiB  120MiB          -  -            image docker.io/library/debian:12 and 1 other
default/2/sha256:222222222222…  committed       2  10GiB    1MiB      64KiB  -            image docker.io/library/python:3
default/3/box                   active          3  10GiB       -          -  possible     pod prod/shop-1: web
default/4/look                  view            2  10GiB      0B         0B  -            -
`, output(t, true, "ls", "--admin-address", address))
	require.Contains(t, outputOf(t, true, true, "ls", "--admin-address", address), palette(true).red("possible"))
	require.Contains(t, output(t, true, "info", "--admin-address", address), `
 Committed: 2
 May Have Lost Writes: 1
`)
	require.Contains(t, output(t, true, "inspect", "--admin-address", address, containerKey), `
Kind: active
Lost Writes: possible; it can be neither committed nor forked
`)
	require.NotContains(t, output(t, true, "inspect", "--admin-address", address, layerKey), "Lost Writes")
	var list snapshotList
	require.NoError(t, json.Unmarshal([]byte(output(t, true, "ls", "--json", "--admin-address", address)), &list))
	for _, s := range list.Snapshots {
		require.Equal(t, s.Key == containerKey, s.WritesLost, s.Key)
	}
}

func TestTree(t *testing.T) {
	address := fakeDaemon(t)
	require.Equal(t, `SNAPSHOT                            KIND       DEVICE    USED  SHARED  EXCLUSIVE  BELONGS TO
default/1/sha256:111111111111…      committed       1  120MiB      0B          -  image docker.io/library/debian:12 and 1 other
└── default/2/sha256:222222222222…  committed       2    1MiB  120MiB      64KiB  image docker.io/library/python:3
    ├── default/3/box               active          3       -       -          -  pod prod/shop-1: web
    └── default/4/look              view            2      0B  121MiB         0B  -
`, output(t, true, "tree", "--admin-address", address))

	var tree snapshotTree
	require.NoError(t, json.Unmarshal([]byte(output(t, true, "tree", "--json", "--admin-address", address)), &tree))
	roots := tree.Snapshots
	require.Len(t, roots, 1)
	require.Equal(t, layerKey, roots[0].Key)
	require.Equal(t, layer2Key, roots[0].Children[0].Key)
	require.Len(t, roots[0].Children[0].Children, 2)
}

func TestDiff(t *testing.T) {
	address := fakeDaemon(t)
	require.Equal(t, "C /etc\nA /etc/new\nD \"/etc/o\\xffd\"\n", output(t, true, "diff", "--admin-address", address, containerKey))
	var difference admin.Difference
	require.NoError(t, json.Unmarshal([]byte(output(t, true, "diff", "--json", "--admin-address", address, containerKey)), &difference))
	require.Equal(t, layer2Key, difference.Parent)
	require.Equal(t, []byte("/etc/o\xffd"), difference.Changes[2].PathBytes)
	got := try(t, false, backend{}, "diff", "--admin-address", address, "absent")
	require.Equal(t, result{exitFailure, "", "thinsnap: no snapshot, container or image is called absent; `thinsnap ls` lists the snapshots: not found\n"}, got)
}

func TestForestKeepsSnapshotsWithoutParent(t *testing.T) {
	roots := forest([]owned{
		{Snapshot: admin.Snapshot{Key: "a", Parent: "gone"}}, {Snapshot: admin.Snapshot{Key: "b"}},
		{Snapshot: admin.Snapshot{Key: "c", Parent: "a"}},
	})
	require.Len(t, roots, 2)
	require.Equal(t, "a", roots[0].Key)
	require.Equal(t, "c", roots[0].Children[0].Key)
}

func TestInspect(t *testing.T) {
	address := fakeDaemon(t)
	require.Equal(t, `Key: default/3/box
Container: web c0ffee
Image: docker.io/library/python:3
Pod: prod/shop-1
Kind: active
Parents: `+layer2Key+`
         `+layerKey+`
Created: 2026-01-02 03:04:05 UTC
Size: 10GiB
Used: -
Shared: -
Exclusive: -
Mapped: 121MiB
Device ID: 3
Device: /dev/mapper/thinsnap-snap-3
State: active, read-write, open count 1
Stack:
  thin thinsnap-snap-3 254:3 /dev/mapper/thinsnap-snap-3
  │ table  0 20971520 thin 254:0 3
  │ status 0 20971520 thin 247808 20971519
  └── pool thinsnap 254:0 /dev/mapper/thinsnap
      │ table  0 209715200 thin-pool 7:1 7:0 128 0
      │ status 0 209715200 thin-pool 7 256/524288 4800/1638400 - rw
      ├── data 7:0 /dev/loop0
      │   └── file /var/lib/thinsnap/pool/data
      └── metadata 7:1 /dev/loop1
          └── file /var/lib/thinsnap/pool/metadata
`, output(t, true, "inspect", "--admin-address", address, containerKey))

	require.Contains(t, output(t, true, "inspect", "--admin-address", address, layerKey), `
State: not active
Stack:
  thin /dev/mapper/thinsnap-snap-1 (not active)
`)
	var inspection admin.Inspection
	require.NoError(t, json.Unmarshal([]byte(output(t, true, "inspect", "--json", "--admin-address", address, containerKey)), &inspection))
	require.Equal(t, "7:1", inspection.Device.Below[0].Below[1].Number)

	got := try(t, false, backend{}, "inspect", "--admin-address", address, "absent")
	require.Equal(t, result{exitFailure, "", "thinsnap: no snapshot, container or image is called absent; `thinsnap ls` lists the snapshots: not found\n"}, got)
}

func TestClientCommands(t *testing.T) {
	address := fakeDaemon(t)
	require.Equal(t, `Client: process 812, /usr/bin/containerd; proxy plugin thinsnap
 Snapshots Kept From Before: 0
 Refused Calls of Others: 2, the last of process 900 (/usr/local/bin/containerd) as proxy plugin "thinsnap"
`, output(t, true, "client", "accept", "--admin-address", address))
	require.Equal(t, `Client: none yet
 Snapshots Kept From Before: 4
 Refused Calls of Others: 0
`, output(t, true, "client", "reset", "--admin-address", address))
	var client admin.ClientInfo
	require.NoError(t, json.Unmarshal([]byte(output(t, true, "client", "reset", "--json", "--admin-address", address)), &client))
	require.EqualValues(t, 4, client.KeptSnapshots)
	require.Contains(t, clientName(&admin.ClientInfo{Proxy: "thinsnap", Since: time.Now(), Unseen: true}), "PID namespace")
	require.Equal(t, "process 7 has ended; proxy plugin thinsnap",
		clientName(&admin.ClientInfo{Proxy: "thinsnap", PID: 7, Since: time.Now()}))
}
