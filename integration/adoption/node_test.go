package adoption

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
	"github.com/thinsnap/thinsnap/integration/tree"
)

// Namespaces of a node.
const (
	defaultNS = "default"
	criNS     = harness.CRINamespace
	otherNS   = "other"
	brokenNS  = "broken"
)

type variant struct {
	release      harness.Release
	filesystem   string
	skipsZeroing bool
	lvm          bool
	// small nodes have a small image, and no content that takes long to make.
	small bool
}

// node is a containerd with its built-in devmapper snapshotter.
type node struct {
	*harnesstest.Containerd
	variant
	pool     *pool
	tools    harness.Tools
	images   harnesstest.Images
	before   uint64 // blocks of the pool in use before the built-in
	registry *harness.Process
	thinsnap *harnesstest.Thinsnap
	pod      *harnesstest.Pod // of the CRI, stopped
	made     trees            // the trees of snapshots that prepare and layer made
	foreign  []uint32         // volumes without a record of the built-in
	programs string           // the first directory of containerd's PATH
}

// handler is the runtime of pods whose snapshotter is the built-in.
const handler = "thin"

// cri returns the CRI's configuration, as for Kata Containers.
func (v variant) cri() string {
	if v.release.ConfigVersion < 3 {
		return fmt.Sprintf(`
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %[1]q
  disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "devmapper"
  default_runtime_name = %[2]q
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.%[2]s]
  runtime_type = "io.containerd.runc.v2"
`, harnesstest.PauseImage, handler)
	}
	return fmt.Sprintf(`
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = %[1]q
[plugins.'io.containerd.cri.v1.images'.runtime_platforms.%[2]s]
  platform = "linux/amd64"
  snapshotter = "devmapper"
[plugins.'io.containerd.cri.v1.runtime']
  disable_apparmor = true
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.%[2]s]
  runtime_type = "io.containerd.runc.v2"
  snapshotter = "devmapper"
`, harnesstest.PauseImage, handler)
}

// newNode makes the pool, and starts containerd on it.
func newNode(t *testing.T, tools harness.Tools, v variant) *node {
	t.Helper()
	n := &node{variant: v, pool: newPool(t, v), tools: tools, programs: t.TempDir(), made: make(trees)}
	n.registry, n.images = harnesstest.StartRegistryProcess(t, tools)
	n.before = n.pool.used(t)
	dir := harnesstest.NewDisk(t)
	setup := harness.Setup{Dir: dir, State: harnesstest.ShortDir(t), Namespace: defaultNS, Programs: n.programs,
		Devmapper: &harness.Devmapper{Root: filepath.Join(dir, "devmapper"), PoolName: n.pool.Name(), BaseSize: "512MB",
			Filesystem: v.filesystem, AsyncRemove: true, NoDiscard: v.filesystem == "xfs"}}
	if !v.small {
		setup.CRI = v.cri()
	}
	started, err := harness.NewContainerd(tools, v.release, setup)
	require.NoError(t, err)
	n.Containerd = &harnesstest.Containerd{Containerd: started}
	t.Cleanup(func() { n.end(t) })
	n.start(t)
	return n
}

// end ends all processes, and shows the log if the test has failed.
func (n *node) end(t *testing.T) {
	t.Helper()
	if t.Failed() {
		t.Log(n.Log())
		for _, ns := range n.namespaces() {
			n.Namespace = ns
			_ = n.RemoveAll() // the daemon may be too broken for it
		}
	}
	n.Kill()
	harnesstest.UnmountBelow(t, n.State)
	for _, ns := range n.namespaces() {
		_ = os.Remove(filepath.Join("/run/containerd/runc", ns)) // runc leaves it empty, or never made it
	}
}

func (n *node) namespaces() []string { return []string{defaultNS, criNS, otherNS, brokenNS} }

func (n *node) start(t *testing.T) {
	t.Helper()
	require.NoError(t, n.Start())
}

func (n *node) stop(t *testing.T) {
	t.Helper()
	require.NoError(t, n.Stop())
}

// killAt kills containerd just before (or, with after, just after) it runs a program with arguments that match the
// shell pattern. do makes containerd run it.
func (n *node) killAt(t *testing.T, program, pattern string, after bool, do func()) {
	t.Helper()
	found, err := exec.LookPath(program)
	require.NoError(t, err)
	first := ":"
	if after {
		first = found + ` "$@"`
	}
	script := fmt.Sprintf("#!/bin/sh\ncase \"$*\" in\n%s) %s; kill -KILL $PPID; exit 1 ;;\nesac\nexec %s \"$@\"\n", pattern, first, found)
	wrapper := filepath.Join(n.programs, program)
	require.NoError(t, os.WriteFile(wrapper, []byte(script), 0o700))
	do()
	<-n.Ended()
	require.NoError(t, os.Remove(wrapper))
}

type client struct {
	context.Context
	snapshots.Snapshotter
	conn *grpc.ClientConn
	ns   string
}

// call calls containerd over a new connection: an old one reconnects late to a restarted daemon.
func (n *node) call(t *testing.T, ns, snapshotter string, f func(c client) error) error {
	t.Helper()
	conn, err := n.Dial()
	require.NoError(t, err)
	defer conn.Close()
	return f(client{
		namespaces.WithNamespace(t.Context(), ns), proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), snapshotter),
		conn, ns,
	})
}

// must is call, and fails the test on an error.
func (n *node) must(t *testing.T, ns, snapshotter string, f func(c client) error) {
	t.Helper()
	require.NoError(t, n.call(t, ns, snapshotter, f))
}

// rootLabel keeps a snapshot from garbage collection.
const rootLabel = "containerd.io/gc.root"

func rooted() snapshots.Opt {
	return snapshots.WithLabels(map[string]string{rootLabel: "2020-01-01T00:00:00Z"})
}

// held returns a context with a lease, which keeps new snapshots from garbage collection.
func (c client) held() context.Context { return leases.WithLease(c, leaseID) }

// prepare has the built-in make an active snapshot, and writes a file into it.
func (n *node) prepare(t *testing.T, ns, key, parent string) {
	t.Helper()
	n.must(t, ns, harness.DevmapperName, func(c client) error {
		if _, err := c.Prepare(c.held(), key, parent); err != nil {
			return err
		}
		return c.write(key, "of "+key, func(dir string) (err error) {
			n.made[ns+"/"+key], err = tree.Walk(dir)
			return err
		})
	})
}

func (c client) write(key, name string, then func(dir string) error) error {
	mounts, err := c.Mounts(c, key)
	if err != nil {
		return err
	}
	return mount.WithTempMount(c, mounts, func(dir string) error {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(key), 0o640); err != nil {
			return err
		}
		return then(dir)
	})
}

// layer has the built-in make a committed snapshot.
func (n *node) layer(t *testing.T, ns, name, parent string) {
	t.Helper()
	n.prepare(t, ns, "extract "+name, parent)
	n.made[ns+"/"+name] = n.made[ns+"/extract "+name]
	n.must(t, ns, harness.DevmapperName, func(c client) error {
		return c.Commit(c.held(), name, "extract "+name)
	})
}

// deleteLease deletes a lease, and all that nothing else holds.
func (c client) deleteLease(id string) error {
	_, err := leasesapi.NewLeasesClient(c.conn).Delete(c, &leasesapi.DeleteRequest{ID: id, Sync: true})
	return err
}

// createLease creates the lease for the snapshots that prepare and layer make.
func (n *node) createLease(t *testing.T, ns string) {
	t.Helper()
	n.must(t, ns, harness.DevmapperName, func(c client) error { return c.createLease(leaseID) })
}

func (c client) createLease(id string) error {
	_, err := leasesapi.NewLeasesClient(c.conn).Create(c, &leasesapi.CreateRequest{ID: id})
	return err
}
