package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/adopt"
	"github.com/thinsnap/thinsnap/internal/adopt/plan"
)

// anAdoption is the backend of the commands: a plan, the record, and the calls.
type anAdoption struct {
	plan   plan.Plan
	record *adopt.Record
	store  string // created by adopt
	err    error  // returned by adopt and undoAdoption
	calls  []string
	called plan.Options // the options of the last call
}

func (f *anAdoption) backend() backend {
	call := func(name string, o plan.Options) plan.Plan {
		f.calls, f.called = append(f.calls, name), o
		p := f.plan
		p.Options = o
		return p
	}
	return backend{
		adoption: func(root string) (adopt.Record, error) {
			if f.record == nil {
				return adopt.Record{}, fmt.Errorf("no adoption in %s: %w", root, errdefs.ErrNotFound)
			}
			return *f.record, nil
		},
		planAdoption: func(_ context.Context, o plan.Options) (plan.Plan, error) { return call("plan", o), nil },
		adopt: func(_ context.Context, o plan.Options, report func(string)) (plan.Plan, error) {
			p := call("adopt", o)
			report("copy the databases")
			if f.err == nil {
				f.err = os.WriteFile(f.store, nil, 0o600)
				f.record = &adopt.Record{
					Phase: adopt.Adopted, Ended: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Pool: o.Pool, RootPath: o.RootPath,
					ContainerdRoot: o.ContainerdRoot, From: o.From, Proxy: o.Proxy, Snapshots: 3, Kept: 1,
				}
			}
			return p, f.err
		},
		undoAdoption: func(_ context.Context, o plan.Options, report func(string)) error {
			call("undo", o)
			report("rename the snapshotter")
			return f.err
		},
	}
}

// aPlan has a row of each kind.
func aPlan() plan.Plan {
	return plan.Plan{
		Rows: []plan.Row{
			{Key: "k8s.io/1/sha256:" + strings.Repeat("a", 64), Name: "sha256:" + strings.Repeat("a", 64), Namespace: "k8s.io", Device: "pool-snap-1", VolumeID: 1, Kind: plan.KindCommitted, Bytes: 10 << 30, Becomes: plan.Adopted},
			{Key: "k8s.io/2/box", Name: "box", Namespace: "k8s.io", Device: "pool-snap-2", VolumeID: 2, Kind: plan.KindActive, Bytes: 10 << 30, Becomes: plan.Adopted},
			{Key: "k8s.io/3/look", Name: "look", Namespace: "k8s.io", Device: "pool-snap-3", VolumeID: 3, Kind: plan.KindView, Bytes: 10 << 30, Becomes: plan.AdoptedView},
			{Key: "k8s.io/4/lost", Name: "lost", Namespace: "k8s.io", Device: "pool-snap-4", VolumeID: 4, Kind: plan.KindActive, Bytes: 10 << 30, Becomes: plan.LeftOut, Problem: "the pool has no volume 4", Remedy: "remove the container"},
			{Device: "pool-snap-5", VolumeID: 5, Kind: plan.KindDevice, Bytes: 10 << 30, Becomes: plan.Kept},
			{Name: "wed\x1bged", Namespace: "default", Kind: plan.KindName, Becomes: plan.LeftOut, Problem: "the built-in has no such snapshot", Remedy: "remove it"},
		},
		Idle:    []string{"pool-snap-2"},
		Reload:  &plan.Reload{Table: "7:1 7:0 128 0", Loaders: []string{"/usr/local/bin/devpool.sh"}},
		Foreign: 2,
	}
}

// configurations writes the configurations of containerd and of thinsnap, and returns the options
// that name them.
func configurations(t *testing.T, containerd string) (args []string, file string) {
	t.Helper()
	dir := t.TempDir()
	file = filepath.Join(dir, "containerd.toml")
	require.NoError(t, os.WriteFile(file, []byte(containerd), 0o600))
	own := filepath.Join(dir, "thinsnap.toml")
	require.NoError(t, os.Mkdir(filepath.Join(dir, "root"), 0o700))
	require.NoError(t, os.WriteFile(own, []byte("root = \""+filepath.Join(dir, "root")+"\"\naddress = \"/run/t.sock\"\n[pool.existing]\ndevice = \"pool\"\n"), 0o600))
	return []string{"adopt", "devmapper", "--config", own, "--containerd-config", file}, file
}

const builtinSection = "version = 2\n[plugins.\"io.containerd.snapshotter.v1.devmapper\"]\npool_name = \"devpool\"\n" +
	"base_image_size = \"10GB\"\n"

const proxySection = `
+[proxy_plugins.thinsnap]
+  type = "snapshot"
+  address = "/run/t.sock"
+  platform = "linux/ARCH"
+  capabilities = ["remap-ids"]
+  [proxy_plugins.thinsnap.exports]
+    root = "DIR/root"
`

// without replaces the parts that differ between runs and machines.
func without(text, file string) string {
	return strings.ReplaceAll(strings.ReplaceAll(text, filepath.Dir(file), "DIR"), runtime.GOARCH, "ARCH")
}

// TestAdoptPlan: without --yes, the plan is printed, and nothing changes.
func TestAdoptPlan(t *testing.T) {
	f := &anAdoption{plan: aPlan()}
	f.plan.Obstacles = []plan.Obstacle{{Subject: `pool "pool"`, Text: "it is suspended", Remedy: "dmsetup resume pool"}}
	args, file := configurations(t, builtinSection)
	got := try(t, false, f.backend(), args...)
	require.Equal(t, `Pool: devpool
The Built-in's Databases: /var/lib/containerd/io.containerd.snapshotter.v1.devmapper
containerd's Data: /var/lib/containerd
thinsnap's Root: DIR/root
Proxy Plugin: thinsnap

BECOMES  NAMESPACE  NAME                  KIND        SIZE  VOLUME  DEVICE
damaged  k8s.io     lost                  active     10GiB       4  pool-snap-4
    the pool has no volume 4
    remedy: remove the container
damaged  default    "wed\x1bged"          name           -       -  -
    the built-in has no such snapshot
    remedy: remove it
kept     -          -                     device     10GiB       5  pool-snap-5
adopted  k8s.io     sha256:aaaaaaaaaaaa…  committed  10GiB       1  pool-snap-1
adopted  k8s.io     box                   active     10GiB       2  pool-snap-2
adopted  k8s.io     look                  view       10GiB       3  pool-snap-3

adopted: thinsnap has it under the same name, with its data
view: adopted, but shows its parent's volume; its own volume is kept
damaged: prevents the adoption; --leave-out-damaged leaves it out
kept: the volume stays in the pool, and `+"`thinsnap leftovers`"+` lists it
The pool has 2 volumes in no database. thinsnap does not change them.

With --yes:
  1. copy the three databases to DIR/root/adopt/backup
  2. build thinsnap's store in DIR/root/adopt
  3. have the pool zero new blocks: load its table without skip_block_zeroing
  4. rename /var/lib/containerd/io.containerd.snapshotter.v1.devmapper/devpool.db and metadata.db next to it to *.adopted, so that the built-in cannot start
  5. deactivate 1 mapped device that nothing uses
  6. rename the snapshotter devmapper to thinsnap in containerd's database, in one transaction
  7. install thinsnap's store

At the next boot these files would load the pool with skip_block_zeroing, and thinsnap would not open it.
Remove the option from the table, and reduce the number of options before it by one:
  /usr/local/bin/devpool.sh

Then change containerd's configuration (- is the old line, + the new one):
--- DIR/containerd.toml	
+++ DIR/containerd.toml	
@@ -1,4 +1,13 @@
 version = 2
+disabled_plugins = ["io.containerd.snapshotter.v1.devmapper"]
 [plugins."io.containerd.snapshotter.v1.devmapper"]
 pool_name = "devpool"
 base_image_size = "10GB"
+`+proxySection+`
Obstacles:
  pool "pool": it is suspended
    remedy: dmsetup resume pool
`, without(got.out, file))
	require.Equal(t, "thinsnap: nothing was changed: 1 obstacle and 2 damaged snapshots (--leave-out-damaged adopts the rest)"+
		": failed precondition\n", got.err)
	require.Equal(t, exitFailure, got.code)
	require.Equal(t, got, try(t, false, f.backend(), append(args, "--yes")...))
	require.Equal(t, []string{"plan", "plan"}, f.calls)
	require.Equal(t, plan.Options{
		Config: f.called.Config, ContainerdRoot: "/var/lib/containerd",
		RootPath: "/var/lib/containerd/io.containerd.snapshotter.v1.devmapper", Pool: "devpool", From: "devmapper", Proxy: "thinsnap",
		ContainerdConfig: file,
	}, f.called)
	require.Equal(t, filepath.Dir(file)+"/root", f.called.Config.Root)
}

// TestAdopt: --yes adopts the snapshots and prints the next steps. Later runs print them again.
func TestAdopt(t *testing.T) {
	f := &anAdoption{plan: aPlan()}
	args, file := configurations(t, builtinSection)
	f.store = filepath.Join(filepath.Dir(file), "root", "metadata.db")
	command := "thinsnap adopt devmapper --config DIR/thinsnap.toml --containerd-config DIR/containerd.toml"
	got := try(t, false, f.backend(), append(args, "--leave-out-damaged", "--dry-run")...)
	require.Equal(t, exitOK, got.code)
	require.Contains(t, got.out, "left out  k8s.io     lost  ")
	require.Contains(t, without(got.out, file), "\nNothing was changed. To take the snapshots over: "+command+" --leave-out-damaged --yes\n")

	got = try(t, false, f.backend(), append(args, "--leave-out-damaged", "--yes")...)
	require.Equal(t, exitOK, got.code, got.err)
	require.True(t, f.called.LeaveOutDamaged)
	next := `Adopted from the pool devpool on 2026-01-02 03:04:05 UTC: 3 snapshots. Left out: 0. Kept volumes (thinsnap leftovers): 1.

Next:
  1. change containerd's configuration as below, without which containerd 2.x does not work; by a command:
     COMMAND | patch -d / -p1
  2. systemctl enable --now thinsnap
  3. systemctl start containerd
  4. thinsnap check
  5. thinsnap ls
To go back, until an adopted snapshot is removed: COMMAND --undo
LOADERS
Change containerd's configuration (- is the old line, + the new one):
--- DIR/containerd.toml	
`
	require.Contains(t, without(got.out, file), "copy the databases\n"+strings.NewReplacer(
		"COMMAND", command, "LOADERS", `
At the next boot these files would load the pool with skip_block_zeroing, and thinsnap would not open it.
Remove the option from the table, and reduce the number of options before it by one:
  /usr/local/bin/devpool.sh
`).Replace(next))
	for _, more := range [][]string{nil, {"--yes"}, {"--pool", "devpool"}} {
		got = try(t, false, f.backend(), append(args, more...)...)
		require.Equal(t, exitOK, got.code)
		require.True(t, strings.HasPrefix(got.out, "Adopted from the pool"))
	}
	require.Equal(t, []string{"plan", "plan", "adopt"}, f.calls)
	got = try(t, false, f.backend(), append(args, "--pool", "other")...)
	require.Equal(t, exitFailure, got.code)
	require.Contains(t, without(got.err, file), `DIR/root has adopted pool "devpool", and one root has one pool`)

	require.NoError(t, os.Remove(f.store))
	require.Equal(t, exitFailure, try(t, false, f.backend(), args...).code, "after its pool was destroyed, another adoption is planned")
	require.Equal(t, "plan", f.calls[len(f.calls)-1])
	got = try(t, false, f.backend(), append(args, "--undo")...)
	require.Equal(t, result{exitOK, `rename the snapshotter
The snapshots are the built-in's again.

Next:
  1. systemctl disable --now thinsnap.socket thinsnap
  2. systemctl start containerd

containerd's configuration, DIR/containerd.toml, needs no change.
`, ""}, result{got.code, without(got.out, file), got.err})
	require.Equal(t, "undo", f.calls[len(f.calls)-1])
}

// TestUndoAfterTheSwitch: --undo prints the patch that reverts containerd's configuration.
func TestUndoAfterTheSwitch(t *testing.T) {
	f := &anAdoption{record: &adopt.Record{Phase: adopt.Back, Pool: "devpool", From: "devmapper", Proxy: "thinsnap"}}
	args, file := configurations(t, "version = 2\ndisabled_plugins = [\"io.containerd.snapshotter.v1.devmapper\"]\n"+
		"[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"thinsnap\"\n")
	got := try(t, false, f.backend(), append(args, "--undo")...)
	require.Equal(t, `rename the snapshotter
The snapshots are the built-in's again.

Next:
  1. change containerd's configuration back, as below
  2. systemctl disable --now thinsnap.socket thinsnap
  3. systemctl start containerd

Change containerd's configuration back (- is the old line, + the new one):
--- DIR/containerd.toml	
+++ DIR/containerd.toml	
@@ -1,4 +1,4 @@
 version = 2
-disabled_plugins = ["io.containerd.snapshotter.v1.devmapper"]
+disabled_plugins = []
 [plugins."io.containerd.grpc.v1.cri".containerd]
-snapshotter = "thinsnap"
+snapshotter = "devmapper"
`, without(got.out, file))
}

// TestAdoptInterrupted: an unfinished adoption is completed or undone, and no other one is planned.
func TestAdoptInterrupted(t *testing.T) {
	record := adopt.Record{
		Phase: adopt.Forward, Began: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), ContainerdRoot: "/c", RootPath: "/r", Pool: "p",
		From: "devmapper", Proxy: "dm",
	}
	f := &anAdoption{record: &record}
	args, file := configurations(t, "version = 2\n")
	f.store = filepath.Join(filepath.Dir(file), "root", "metadata.db")
	got := try(t, false, f.backend(), args...)
	require.Equal(t, result{exitFailure, "", "thinsnap: the adoption that began 2026-01-02 03:04:05 UTC is not complete: " +
		"add --yes to complete it, or --undo to go back: failed precondition\n"}, got)
	require.Equal(t, exitOK, try(t, false, f.backend(), append(args, "--yes")...).code)
	require.Equal(t, []string{"adopt"}, f.calls)
	require.Equal(t, plan.Options{
		Config: f.called.Config, ContainerdRoot: "/c", RootPath: "/r", Pool: "p", From: "devmapper", Proxy: "dm",
		ContainerdConfig: file,
	}, f.called)

	record.Phase = adopt.Back
	f = &anAdoption{record: &record, err: errors.New("the disk is full")}
	got = try(t, false, f.backend(), append(args, "--yes")...)
	require.Contains(t, got.err, "it is being undone: add --undo to complete that")
	got = try(t, false, f.backend(), append(args, "--undo")...)
	require.Equal(t, result{exitFailure, "rename the snapshotter\n", "thinsnap: the disk is full\n"}, got)
	require.Equal(t, []string{"undo"}, f.calls)

	f = &anAdoption{}
	got = try(t, false, f.backend(), append(args, "--undo")...)
	require.Equal(t, result{exitFailure, "", "thinsnap: nothing to undo: no adoption in DIR/root: not found\n"},
		result{got.code, got.out, without(got.err, file)})
}

// TestAdoptOptions: the command line overrides containerd's configuration.
func TestAdoptOptions(t *testing.T) {
	f := &anAdoption{}
	known := builtinSection + "[proxy_plugins.dm]\ntype = \"snapshot\"\naddress = \"/run/t.sock\"\n"
	args, file := configurations(t, "root = \"/srv/c\"\n"+strings.TrimPrefix(known, "version = 2\n")+"\n")
	run := func(more ...string) result { return try(t, false, f.backend(), append(args, more...)...) }
	require.NoError(t, os.WriteFile(file, []byte("root = \"/srv/c\"\n"+known), 0o600))
	got := run()
	require.Equal(t, exitOK, got.code, got.err)
	require.Equal(t, "/srv/c", f.called.ContainerdRoot)
	require.Equal(t, "/srv/c/io.containerd.snapshotter.v1.devmapper", f.called.RootPath)
	require.Equal(t, "dm", f.called.Proxy, "the proxy plugin that has thinsnap's address")

	require.Equal(t, exitOK, run("--containerd-root", "/srv/d").code)
	require.Equal(t, "/srv/d/io.containerd.snapshotter.v1.devmapper", f.called.RootPath)
	got = run("--name", "other")
	require.Equal(t, exitFailure, got.code)
	require.Contains(t, got.out, `the proxy plugin "dm" has the address /run/t.sock already`)
	require.Contains(t, got.out, "Then change containerd's configuration by hand (docs/migration.md)")
	require.Contains(t, got.err, "1 obstacle: failed precondition")

	require.NoError(t, os.Remove(file))
	got = run("--pool", "p", "--root-path", "/r")
	require.Equal(t, exitFailure, got.code)
	require.Contains(t, got.err, "name the file that containerd reads")
	require.Contains(t, got.err, "thinsnap: --containerd-root, --root-path and --pool are not all given, and there is no default: ")
	got = run("--pool", "p", "--root-path", "/r", "--containerd-root", "/c", "--name", "other")
	require.Equal(t, exitOK, got.code, "an unknown patch is not an obstacle")
	require.Equal(t, plan.Options{
		Config: f.called.Config, ContainerdRoot: "/c", RootPath: "/r", Pool: "p", From: "devmapper", Proxy: "other",
		ContainerdConfig: file,
	}, f.called)

	for _, wrong := range [][]string{{"--yes", "--undo"}, {"--dry-run", "--yes"}, {"--undo", "--pool", "p"}, {"--undo", "--json"}, {"more"}} {
		require.Equal(t, exitUsage, run(wrong...).code, wrong)
	}
}

// TestAdoptMany: of 10,000 snapshots, those that need a decision are listed.
func TestAdoptMany(t *testing.T) {
	f := &anAdoption{}
	for i := range 10_000 {
		r := plan.Row{
			Key: fmt.Sprintf("ns%d/%d/x", i%3, i), Name: fmt.Sprint("x", i), Namespace: fmt.Sprint("ns", i%3), Device: fmt.Sprint("d", i),
			VolumeID: uint32(i + 1), Kind: plan.KindCommitted, Bytes: 1 << 30, Becomes: plan.Adopted,
		}
		switch i % 100 {
		case 0:
			r.Kind, r.Becomes, r.Problem, r.Remedy = plan.KindActive, plan.LeftOut, "its volume is gone", "remove it"
		case 1:
			r.Namespace, r.Name, r.Becomes, r.Kind = "", "", plan.Kept, plan.KindDevice
		}
		f.plan.Rows = append(f.plan.Rows, r)
	}
	args, _ := configurations(t, builtinSection)
	got := try(t, false, f.backend(), args...)
	require.Less(t, strings.Count(got.out, "\n"), 350)
	require.Contains(t, got.out[len(got.out)/2:], "and 100 more rows that are not adopted: --all lists them\n"+
		"adopted in namespace ns0: 0 active, 3267 committed, 0 views\n"+
		"adopted in namespace ns1: 0 active, 3266 committed, 0 views\n"+
		"adopted in namespace ns2: 0 active, 3267 committed, 0 views\n"+
		"--all lists them\n")
	require.Equal(t, 100, strings.Count(got.out, "\ndamaged  "))
	require.Greater(t, strings.Count(try(t, false, f.backend(), append(args, "--all")...).out, "\n"), 10_000)
}

// TestAdoptJSON pins the names of the fields, which docs/migration.md documents.
func TestAdoptJSON(t *testing.T) {
	f := &anAdoption{plan: aPlan()}
	f.plan.Rows = f.plan.Rows[3:5]
	f.plan.Obstacles = []plan.Obstacle{{Subject: "s", Text: "t", Remedy: "r"}}
	args, file := configurations(t, builtinSection+"[proxy_plugins.thinsnap]\ntype = \"diff\"\n")
	args = append(args, "--json")
	got := try(t, false, f.backend(), args...)
	require.Equal(t, exitFailure, got.code)
	problem := `there is a proxy plugin \"thinsnap\" already, of type \"diff\" at \"\": choose another name, or correct its section ` +
		`to type \"snapshot\" and address \"/run/t.sock\": failed precondition`
	require.JSONEq(t, `{
		"possible": false, "pool": "devpool", "root_path": "/var/lib/containerd/io.containerd.snapshotter.v1.devmapper",
		"containerd_root": "/var/lib/containerd", "root": "DIR/root", "proxy": "thinsnap", "damaged": 1, "foreign": 2,
		"snapshots": [
			{"key": "k8s.io/4/lost", "namespace": "k8s.io", "name": "lost", "kind": "active", "size_bytes": 10737418240, "device_id": 4,
			 "device": "pool-snap-4", "becomes": "left-out", "problem": "the pool has no volume 4", "remedy": "remove the container"},
			{"kind": "device", "size_bytes": 10737418240, "device_id": 5, "device": "pool-snap-5", "becomes": "kept"}
		],
		"obstacles": [
			{"subject": "s", "text": "t", "remedy": "r"},
			{"subject": "containerd's configuration", "text": "DIR/containerd.toml: `+problem+`"}
		],
		"idle_devices": ["pool-snap-2"],
		"reload": {"table": "7:1 7:0 128 0", "loaders": ["/usr/local/bin/devpool.sh"]},
		"configuration": {"files": [], "patch": "", "error": "DIR/containerd.toml: `+problem+`"}
	}`, without(got.out, file))

	require.NoError(t, os.WriteFile(file, []byte(builtinSection+"[proxy_plugins.thinsnap]\ntype = \"snapshot\"\n"+
		"address = \"/run/t.sock\"\n"), 0o600))
	f.plan.Obstacles = nil
	f.store = filepath.Join(filepath.Dir(file), "root", "metadata.db")
	got = try(t, false, f.backend(), append(args, "--yes", "--leave-out-damaged")...)
	require.Equal(t, exitOK, got.code)
	require.Equal(t, "copy the databases\n", got.err)
	require.JSONEq(t, `{
		"adopted_at": "2026-01-02T03:04:05Z", "pool": "devpool",
		"root_path": "/var/lib/containerd/io.containerd.snapshotter.v1.devmapper", "containerd_root": "/var/lib/containerd",
		"root": "DIR/root", "proxy": "thinsnap", "adopted": 3, "left_out": 0, "kept": 1,
		"configuration": {"files": ["DIR/containerd.toml"], "patch": "--- DIR/containerd.toml\t\n+++ DIR/containerd.toml\t\n@@ -1,4 +1,5 @@\n version = 2\n+disabled_plugins = [\"io.containerd.snapshotter.v1.devmapper\"]\n [plugins.\"io.containerd.snapshotter.v1.devmapper\"]\n pool_name = \"devpool\"\n base_image_size = \"10GB\"\n"}
	}`, without(got.out, file))
}
