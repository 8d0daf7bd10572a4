package plan_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	ctrdmetadata "github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/snapshots/devmapper"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	dm "github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/adopt/builtin"
	"github.com/thinsnap/thinsnap/internal/adopt/plan"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/dmtest/dmpool"
)

// node is a node with containerd and its built-in devmapper snapshotter: containerd's own code, in
// this process, on a pool in this kernel.
type node struct {
	t *testing.T
	*thin.Pool
	control *dm.Control
	devices []string // the pool's devices, or their files

	root  string // root of containerd
	async bool
	size  string // base_image_size
	fs    string // fs_type

	snapshotter *devmapper.Snapshotter
	bolt        *bolt.DB
	containerd  *ctrdmetadata.DB
}

func newNode(t *testing.T, dataBytes int64, zeroBlocks bool) *node {
	t.Helper()
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	pool := dmpool.NewWith(t, dmpool.Options{Dir: t.TempDir(), DataBytes: dataBytes, MetadataBytes: 4 << 20, ZeroBlocks: zeroBlocks})
	return nodeOn(t, pool.Pool, pool.Control, pool.DataFile, pool.MetadataFile)
}

func nodeOn(t *testing.T, pool *thin.Pool, control *dm.Control, devices ...string) *node {
	t.Helper()
	t.Cleanup(runtime.GC) // containerd's content store leaves a file open for the garbage collector
	if !dm.UdevRuns() {
		t.Setenv("DM_DISABLE_UDEV", "1")
	}
	return &node{t: t, Pool: pool, control: control, devices: devices, root: t.TempDir(), size: "64MB", fs: "ext4"}
}

func (n *node) activate(name string, d builtin.Device) {
	n.t.Helper()
	pool, err := n.control.Info(n.Name())
	require.NoError(n.t, err)
	target := thin.Target(pool.Number(), thin.ID(d.ID), d.Bytes/dm.SectorBytes)
	_, err = n.control.Activate(name, "", []dm.Target{target}, false)
	require.NoError(n.t, err)
}

func (n *node) start() {
	n.t.Helper()
	c := devmapper.Config{
		RootPath: n.builtinRoot(), PoolName: n.Name(), BaseImageSize: n.size, AsyncRemove: n.async, FileSystemType: "ext4",
	}
	switch n.fs { // containerd does not export the type
	case "xfs":
		c.FileSystemType = "xfs"
	case "ext2":
		c.FileSystemType = "ext2"
	}
	var err error
	n.snapshotter, err = devmapper.NewSnapshotter(n.t.Context(), &c)
	require.NoError(n.t, err)
	dir := filepath.Join(n.root, "io.containerd.metadata.v1.bolt")
	require.NoError(n.t, os.MkdirAll(dir, 0o700))
	// The options are those of containerd's plugins/metadata/plugin.go.
	n.bolt, err = bolt.Open(filepath.Join(dir, "meta.db"), 0o644, &bolt.Options{NoFreelistSync: true, NoStatistics: true})
	require.NoError(n.t, err)
	store, err := local.NewStore(filepath.Join(n.root, "content"))
	require.NoError(n.t, err)
	n.containerd = ctrdmetadata.NewDB(n.bolt, store, map[string]snapshots.Snapshotter{"devmapper": n.snapshotter})
	require.NoError(n.t, n.containerd.Init(n.t.Context()))
}

// stop stops containerd, and makes the pool commit.
func (n *node) stop() {
	n.t.Helper()
	require.NoError(n.t, n.bolt.Close())
	require.NoError(n.t, n.snapshotter.Close())
	n.commit()
}

func (n *node) commit() {
	n.t.Helper()
	_, err := n.Status(false)
	require.NoError(n.t, err)
}

func (n *node) builtinRoot() string {
	return filepath.Join(n.root, "io.containerd.snapshotter.v1.devmapper")
}

func (n *node) in(ns string) (context.Context, snapshots.Snapshotter) {
	return namespaces.WithNamespace(n.t.Context(), ns), n.containerd.Snapshotter("devmapper")
}

// needed protects a snapshot from containerd's collector.
func needed() snapshots.Opt {
	return snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "now"})
}

// prepare creates a container with a file of mib MiB.
func (n *node) prepare(ns, key, parent string, mib int) {
	n.t.Helper()
	ctx, sn := n.in(ns)
	mounts, err := sn.Prepare(ctx, key, parent, needed())
	require.NoError(n.t, err)
	require.NoError(n.t, mount.WithTempMount(ctx, mounts, func(root string) error {
		content := make([]byte, mib<<20)
		copy(content, key)
		return os.WriteFile(filepath.Join(root, "file"), content, 0o600)
	}))
}

func (n *node) layer(ns, name, parent string) {
	n.t.Helper()
	n.prepare(ns, "extract "+name, parent, 1)
	ctx, sn := n.in(ns)
	require.NoError(n.t, sn.Commit(ctx, name, "extract "+name, needed()))
}

func (n *node) view(ns, key, parent string) {
	n.t.Helper()
	ctx, sn := n.in(ns)
	_, err := sn.View(ctx, key, parent, needed())
	require.NoError(n.t, err)
}

// remove removes a snapshot from containerd and, like its collector, from the built-in. It returns
// the name of its device.
func (n *node) remove(ns, key string) (device string) {
	n.t.Helper()
	ctx, sn := n.in(ns)
	mounts, err := sn.Mounts(ctx, key)
	require.NoError(n.t, err)
	require.NoError(n.t, sn.Remove(ctx, key))
	require.NoError(n.t, n.snapshotter.Remove(ctx, n.backend(ns, key)))
	return filepath.Base(mounts[0].Source)
}

// backend returns the built-in's key of a snapshot that containerd names, or did name.
func (n *node) backend(ns, key string) (found string) {
	n.t.Helper()
	require.NoError(n.t, n.snapshotter.Walk(n.t.Context(), func(_ context.Context, info snapshots.Info) error {
		if strings.HasPrefix(info.Name, ns+"/") && strings.HasSuffix(info.Name, "/"+key) {
			found = info.Name
		}
		return nil
	}))
	require.NotEmpty(n.t, found)
	return found
}

func (n *node) options() plan.Options {
	c := config.Default()
	c.Root = filepath.Join(n.root, "thinsnap")
	c.Pool.Mode, c.Pool.Existing.Device = config.ModeExisting, n.Name()
	return plan.Options{
		Config: c, ContainerdRoot: n.root, RootPath: n.builtinRoot(), Pool: n.Name(), From: "devmapper", Proxy: "thinsnap",
	}
}

// make makes a plan, which must change nothing.
func (n *node) make(o plan.Options) plan.Plan {
	n.t.Helper()
	before := n.digests()
	p, err := plan.Make(n.t.Context(), o)
	require.NoError(n.t, err)
	require.Equal(n.t, before, n.digests())
	require.NoDirExists(n.t, o.Config.Root)
	return p
}

// digests returns the digests of all files and devices that a plan reads.
func (n *node) digests() map[string]string {
	n.t.Helper()
	all := make(map[string]string)
	for _, path := range append([]string{
		filepath.Join(n.root, "io.containerd.metadata.v1.bolt", "meta.db"), filepath.Join(n.builtinRoot(), "metadata.db"),
		filepath.Join(n.builtinRoot(), n.Name()+".db"),
	}, n.devices...) {
		file, err := os.Open(path)
		require.NoError(n.t, err)
		require.NoError(n.t, unix.Fadvise(int(file.Fd()), 0, 0, unix.FADV_DONTNEED)) // the pool writes past the page cache
		sum := sha256.New()
		_, err = io.Copy(sum, file)
		require.NoError(n.t, err)
		require.NoError(n.t, file.Close())
		all[path] = fmt.Sprintf("%x", sum.Sum(nil))
	}
	return all
}
