package plan

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/plugins/snapshots/devmapper"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"github.com/thinsnap/thinsnap/internal/rootdir"
	"github.com/thinsnap/thinsnap/metadata"
)

// machine makes the files of a containerd that has no snapshots.
func machine(t *testing.T) Options {
	t.Helper()
	dir := t.TempDir()
	o := newWorld().in.options
	o.ContainerdRoot, o.RootPath, o.Config.Root = filepath.Join(dir, "c"), filepath.Join(dir, "r"), filepath.Join(dir, "root")
	write(t, filepath.Join(o.ContainerdRoot, "io.containerd.grpc.v1.introspection", "uuid"), "UUID")
	require.NoError(t, os.MkdirAll(filepath.Dir(metaDB(o)), 0o700))
	edit(t, metaDB(o), "v1")
	require.NoError(t, os.Mkdir(o.RootPath, 0o700))
	store, err := storage.NewMetaStore(filepath.Join(o.RootPath, "metadata.db"))
	require.NoError(t, err)
	require.NoError(t, store.WithTransaction(t.Context(), false, func(context.Context) error { return nil }))
	require.NoError(t, store.Close())
	pool, err := devmapper.NewPoolMetadata(poolDB(o))
	require.NoError(t, err)
	require.NoError(t, pool.Close())
	return o
}

func metaDB(o Options) string {
	return filepath.Join(o.ContainerdRoot, "io.containerd.metadata.v1.bolt", "meta.db")
}

func poolDB(o Options) string { return filepath.Join(o.RootPath, o.Pool+".db") }

func write(t *testing.T, path, text string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
}

// edit makes nested buckets in a database of containerd.
func edit(t *testing.T, path string, buckets ...string) {
	t.Helper()
	db := hold(t, path)
	require.NoError(t, db.Update(func(tx *bolt.Tx) error {
		at, err := tx.CreateBucketIfNotExists([]byte(buckets[0]))
		if err == nil {
			err = at.Put([]byte("version"), []byte{8})
		}
		for _, name := range buckets[1:] {
			if err == nil {
				at, err = at.CreateBucketIfNotExists([]byte(name))
			}
		}
		return err
	}))
	require.NoError(t, db.Close())
}

// hold opens a database like containerd.
func hold(t *testing.T, path string) *bolt.DB {
	t.Helper()
	db, err := bolt.Open(path, 0o600, nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// TestGatheredObstacles has each obstacle that is found while the input is read, except those of
// the pool.
func TestGatheredObstacles(t *testing.T) {
	for name, test := range map[string]struct {
		change                func(t *testing.T, o *Options)
		subject, text, remedy string
	}{
		"none": {func(*testing.T, *Options) {}, "", "", ""},
		"containerd runs": {func(t *testing.T, o *Options) { hold(t, metaDB(*o)) }, "/c/io.containerd.metadata.v1.bolt/meta.db",
			"another process has it open", "stop containerd"},
		"the built-in runs":        {func(t *testing.T, o *Options) { hold(t, poolDB(*o)) }, "/r", "another process has it open", "stop containerd"},
		"no meta.db":               {func(t *testing.T, o *Options) { require.NoError(t, os.Remove(metaDB(*o))) }, "/meta.db", "no such file", "root, root_path and pool_name"},
		"no pool database":         {func(t *testing.T, o *Options) { require.NoError(t, os.Remove(poolDB(*o))) }, "/r", "no such file", "root, root_path and pool_name"},
		"damaged database":         {func(t *testing.T, o *Options) { write(t, poolDB(*o), strings.Repeat("x", 1<<15)) }, "/r", "not an intact bbolt file", "restore a backup"},
		"unknown schema":           {func(t *testing.T, o *Options) { edit(t, poolDB(*o), "v9") }, "/r", "v9", "a newer thinsnap"},
		"name taken":               {func(t *testing.T, o *Options) { edit(t, metaDB(*o), "v1", "k8s.io", "snapshots", "thinsnap", "box") }, "/meta.db", `"thinsnap" already`, "--name"},
		"no name of a snapshotter": {func(_ *testing.T, o *Options) { o.Proxy = "a/b" }, "/meta.db", "not a valid name of a snapshotter", "another name"},
		"another mode":             {func(_ *testing.T, o *Options) { o.Config.Pool.Mode = "loop" }, "thinsnap's configuration", `pool.mode is "loop"`, "thinsnap config from-containerd"},
		"another pool":             {func(_ *testing.T, o *Options) { o.Config.Pool.Existing.Device = "vg/fc" }, "thinsnap's configuration", `device is "vg/fc", and the built-in's pool is "fc"`, "thinsnap config from-containerd"},
		"names of mapped devices":  {func(_ *testing.T, o *Options) { o.Config.Pool.Name = "fc" }, "thinsnap's configuration", `pool.name is "fc"`, "set pool.name"},
		"store":                    {func(t *testing.T, o *Options) { require.NoError(t, store(t, *o).Close()) }, "/root/metadata.db", "thinsnap already has a store", "thinsnap pool destroy"},
		"damaged store":            {func(t *testing.T, o *Options) { write(t, rootdir.Store(o.Config.Root), "x") }, "/root/metadata.db", "thinsnap already has a store", "thinsnap pool destroy"},
		"thinsnap runs":            {func(t *testing.T, o *Options) { store(t, *o) }, "/root/metadata.db", "thinsnap is running", "stop thinsnap"},
		"root of others": {func(t *testing.T, o *Options) {
			require.NoError(t, os.Mkdir(o.Config.Root, 0o700))
			require.NoError(t, os.Chmod(o.Config.Root, 0o777))
		}, "/root", "others may have changed", "see the message"},
		"no room": {func(t *testing.T, o *Options) {
			require.NoError(t, os.Truncate(filepath.Join(o.RootPath, "metadata.db"), 1<<43))
		}, "/root", "bytes free", "make room"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // a locked file takes a second
			o := machine(t)
			test.change(t, &o)
			g := &gatherer{ctx: t.Context(), input: input{options: o}}
			g.readNames()
			g.checkConfiguration()
			g.checkRoot()
			if name != "no room" {
				g.readBuiltin()
			}
			if test.text == "" {
				require.Empty(t, g.obstacles)
				require.False(t, g.unread)
				require.Equal(t, "UUID", g.installation)
				return
			}
			require.Len(t, g.obstacles, 1)
			found := g.obstacles[0]
			require.Contains(t, found.Subject, test.subject)
			require.Contains(t, found.Text, test.text)
			require.Contains(t, found.Remedy, test.remedy)
		})
	}
}

func store(t *testing.T, o Options) *metadata.Store {
	t.Helper()
	require.NoError(t, os.MkdirAll(o.Config.Root, 0o700))
	s, err := metadata.Open(rootdir.Store(o.Config.Root), metadata.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestMakeFails(t *testing.T) {
	o := machine(t)
	o.Proxy = o.From
	_, err := Make(t.Context(), o)
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	o.Proxy = ""
	_, err = Make(t.Context(), o)
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	require.ErrorContains(t, err, "the name of the proxy")
}

// TestPoolsOfLVM: LVM's name of the pool, and of the device below it, are accepted.
func TestPoolsOfLVM(t *testing.T) {
	for _, c := range []struct {
		device, pool string
		same         bool
	}{
		{"vg-0/pool", "vg--0-pool", true}, {"/dev/vg/pool", "vg-pool-tpool", true}, {"vg-pool", "vg-pool-tpool", true},
		{"vg/pool", "vg-pool2", false},
	} {
		g := &gatherer{ctx: t.Context(), input: input{options: newWorld().in.options}}
		g.options.Config.Pool.Existing.Device, g.options.Pool = c.device, c.pool
		g.checkConfiguration()
		require.Equal(t, c.same, len(g.obstacles) == 0, "%v", c)
	}
}

func TestLoaders(t *testing.T) {
	root := t.TempDir()
	table := `dmsetup create fc-pool --table "0 $SIZE thin-pool $META $DATA 128 32768 1 skip_block_zeroing"`
	for path, text := range map[string]string{
		"etc/systemd/system/pool.service":     "[Service]\nType=oneshot\nExecStart=-/root/devmapper/load.sh --quiet\n",
		"root/devmapper/load.sh":              table,
		"root/devmapper/old.sh":               table, // nothing starts it
		"etc/systemd/system/x.d/table.conf":   "[Service]\nExecStartPre=/bin/sh -c '" + table + "'\n",
		"usr/local/bin/devmapper_reload":      strings.ReplaceAll(table, "create", "reload"),
		"usr/local/bin/other":                 strings.ReplaceAll(table, "fc-pool", "another"),
		"usr/local/bin/zeroes":                strings.ReplaceAll(table, "1 skip_block_zeroing", "0"),
		"usr/local/bin/binary":                table + "\x00",
		"usr/local/bin/large":                 table + strings.Repeat("#", loaderBytes),
		"opt/a/b/c/d/deep.sh":                 table,
		"opt/a/b/c/d/e/too-deep.sh":           table,
		"etc/rc.local":                        table,
		"etc/cron.d/pool":                     "@reboot root " + table,
		"usr/lib/systemd/system/none.service": "[Service]\nExecStart=/does/not/exist /root\n",
	} {
		write(t, filepath.Join(root, path), text)
	}
	wants := filepath.Join(root, "etc/systemd/system/multi-user.target.wants")
	require.NoError(t, os.Mkdir(wants, 0o700))
	require.NoError(t, os.Symlink("../x.d/table.conf", filepath.Join(wants, "again.service")))
	require.NoError(t, os.Symlink(root, filepath.Join(root, "opt/all")))
	found := loaders(t.Context(), root, "fc-pool")
	require.Len(t, found, 6)
	require.Subset(t, found, []string{
		"/etc/cron.d/pool", "/etc/rc.local", "/opt/a/b/c/d/deep.sh", "/root/devmapper/load.sh", "/usr/local/bin/devmapper_reload",
	})
}

func TestMountsOf(t *testing.T) {
	proc := t.TempDir()
	process := func(name, space string, lines ...string) {
		t.Helper()
		write(t, filepath.Join(proc, name, "mountinfo"), strings.Join(lines, "\n")+"\n")
		require.NoError(t, os.MkdirAll(filepath.Join(proc, name, "ns"), 0o700))
		require.NoError(t, os.Symlink(space, filepath.Join(proc, name, "ns", "mnt")))
	}
	const root = "22 1 259:1 / / rw shared:1 - ext4 /dev/root rw"
	process("self", "mnt:[1]", root, `30 22 253:7 / /run/a\040b rw - ext4 /dev/mapper/fc-snap-1 rw`)
	process("1", "mnt:[1]", root)
	process("77", "mnt:[2]", root, "31 22 253:7 / / rw - ext4 /dev/mapper/fc-snap-1 rw", "32 22 253:8 /x /x rw - xfs /dev/dm-8 rw")
	process("78", "mnt:[2]", "not read")
	write(t, filepath.Join(proc, "meminfo"), "")
	all := mountsOf(proc)
	require.Equal(t, []string{"/run/a b", "/ (seen by process 77)"}, all["253:7"])
	require.Equal(t, []string{"/x (seen by process 77)"}, all["253:8"])
	require.Empty(t, mountsOf(filepath.Join(proc, "nothing")))
}
