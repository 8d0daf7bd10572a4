package failpoint

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/plugins/snapshots/devmapper"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	devmap "github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
	"github.com/thinsnap/thinsnap/internal/adopt"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/daemon"
	"github.com/thinsnap/thinsnap/internal/dmtest/dmpool"
)

// builtin is containerd's devmapper snapshotter with content, in a pool that does not zero new blocks. Its code and
// that of containerd's metadata run in this process.
type builtin struct {
	*testing.T
	control  *devmap.Control
	poolName string
	dataPath string // file of the pool's data
	dir      string // containerd's directory
	root     string // thinsnap's root
	program  string // thinsnap with failpoints
	settings string // thinsnap's configuration
}

// newBuiltin makes the pool in files.
func newBuiltin(t *testing.T) *builtin {
	t.Helper()
	p := dmpool.New(t, 128<<20, 4<<20)
	return newBuiltinOn(t, p.Control, p.Name(), p.DataFile)
}

func newBuiltinOn(t *testing.T, control *devmap.Control, poolName, dataPath string) *builtin {
	t.Helper()
	t.Cleanup(runtime.GC) // closes unreachable files before dmtest.NoLeaks lists them
	s := &builtin{T: t, control: control, poolName: poolName, dataPath: dataPath, dir: t.TempDir()}
	s.root, s.settings = filepath.Join(s.dir, "thinsnap"), filepath.Join(s.dir, "config.toml")
	var err error
	s.program, err = filepath.Abs("../../bin/thinsnap-failpoints")
	require.NoError(t, err)
	require.FileExists(t, s.program, "integration/failpoint/build.sh makes it")
	sockets := harnesstest.ShortDir(t)
	require.NoError(t, os.WriteFile(s.settings, fmt.Appendf(nil, `version = 1
root = %q
address = %q
admin_address = %q
[pool]
mode = "existing"
name = "adopted"
spares_max = 0
[pool.existing]
device = %q
[filesystem]
base_size = "32MiB"
`, s.root, filepath.Join(sockets, "thinsnap.sock"), filepath.Join(sockets, "admin.sock"), s.poolName), 0o600))
	s.devmapper(func(c *client) { c.fill() })
	return s
}

func (s *builtin) rootPath() string { return filepath.Join(s.dir, "devmapper") }
func (s *builtin) metaPath() string {
	return filepath.Join(s.dir, "io.containerd.metadata.v1.bolt", "meta.db")
}

func (s *builtin) devmapperConfig() *devmapper.Config {
	return &devmapper.Config{
		RootPath: s.rootPath(), PoolName: s.poolName, BaseImageSize: "16MiB", AsyncRemove: true,
	}
}

// devmapper calls f with a containerd that uses the built-in.
func (s *builtin) devmapper(f func(c *client)) {
	s.Helper()
	sn, err := devmapper.NewSnapshotter(s.Context(), s.devmapperConfig())
	require.NoError(s, err)
	s.client("devmapper", sn, f)
	require.NoError(s, sn.Close())
}

// thinsnap calls f with a containerd that uses thinsnap, and checks thinsnap afterwards.
func (s *builtin) thinsnap(f func(c *client)) {
	s.Helper()
	c, err := config.Load(s.settings)
	require.NoError(s, err)
	d, err := daemon.Open(s.Context(), c)
	require.NoError(s, err)
	s.client("thinsnap", d.Snapshotter(), f)
	require.NoError(s, d.Snapshotter().Cleanup(s.Context()))
	r, err := d.Check(s.Context(), true)
	require.NoError(s, err)
	require.Empty(s, r.Findings)
	require.NoError(s, d.Close())
}

// try runs `thinsnap adopt devmapper`.
func (s *builtin) try(env []string, args ...string) (string, error) {
	s.Helper()
	cmd := exec.Command(s.program, append([]string{
		"--config", s.settings, "adopt", "devmapper", "--containerd-config", filepath.Join(s.dir, "none.toml"),
	}, args...)...)
	if args[0] != "--undo" {
		cmd.Args = append(cmd.Args, "--containerd-root", s.dir, "--root-path", s.rootPath(), "--pool", s.poolName)
	}
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%v: %w: %s", args, err, out)
	}
	return string(out), err
}

func (s *builtin) run(args ...string) {
	s.Helper()
	_, err := s.try(nil, args...)
	require.NoError(s, err)
}

// passed runs thinsnap, and returns the failpoints in the order of their passes, with repetitions.
func (s *builtin) passed(args ...string) (names []string) {
	s.Helper()
	out, err := s.try([]string{variable(tell, adoptFailpoints(s)...)}, args...)
	require.NoError(s, err)
	for line := range strings.Lines(out) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "failpoint print: "); ok {
			names = append(names, name)
		}
	}
	return names
}

// kill runs thinsnap with a failpoint that kills it, at its first or second pass.
func (s *builtin) kill(failpoint string, second bool, args ...string) {
	s.Helper()
	action := crash
	if second {
		action = "1*off->" + crash
	}
	_, err := s.try([]string{variable(action, failpoint)}, args...)
	require.ErrorContains(s, err, "killed")
}

func adoptFailpoints(t testing.TB) (names []string) {
	t.Helper()
	failpoint := regexp.MustCompile(`// gofail: var (adopt\w+) struct\{\}`)
	for _, dir := range []string{"../../internal", "../../devmapper"} {
		require.NoError(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") {
				return err
			}
			b, err := os.ReadFile(path)
			for _, m := range failpoint.FindAllSubmatch(b, -1) {
				names = append(names, string(m[1]))
			}
			return err
		}))
	}
	return names
}

func (s *builtin) canUndo() bool {
	s.Helper()
	_, err := adopt.Read(s.root)
	if err != nil {
		require.ErrorIs(s, err, errdefs.ErrNotFound)
	}
	return err == nil
}

func (s *builtin) requireAdopted() {
	s.Helper()
	require.NoError(s, adopt.Unfinished(s.root))
	r, err := adopt.Read(s.root)
	require.NoError(s, err)
	require.Equal(s, adopt.Adopted, r.Phase)
	require.FileExists(s, filepath.Join(s.root, "metadata.db"))
	require.Empty(s, s.mapped())
	_, err = devmapper.NewSnapshotter(s.Context(), s.devmapperConfig())
	require.ErrorContains(s, err, "invalid database")
}

// state is the state that an undo must restore.
type state struct {
	files   map[string]string // checksums of the built-in's databases
	meta    []string          // containerd's database, without the other snapshotter
	volumes []thinmeta.Device
	used    uint64 // blocks of data
	mapped  []string
}

func (s *builtin) state() state {
	s.Helper()
	st := state{files: make(map[string]string), mapped: s.mapped()}
	entries, err := os.ReadDir(s.rootPath())
	require.NoError(s, err)
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(s.rootPath(), e.Name()))
		require.NoError(s, err)
		st.files[e.Name()] = fmt.Sprintf("%x", sha256.Sum256(b))
	}
	db, err := bolt.Open(s.metaPath(), 0, &bolt.Options{ReadOnly: true, Timeout: time.Second})
	require.NoError(s, err)
	require.NoError(s, db.View(func(tx *bolt.Tx) error { st.meta = dump(s, "", tx.Cursor().Bucket()); return nil }))
	require.NoError(s, db.Close())
	unix.Sync()
	found, err := pool.ExistingSpec{Device: s.poolName}.Inspect(s.Context(), s.control)
	require.NoError(s, err)
	st.used = found.Status.DataUsed
	require.NoError(s, found.ReadCommitted(s.Context(), func(m *thinmeta.Metadata, _ io.ReaderAt) error {
		for d, err := range m.Devices(s.Context()) {
			if err != nil {
				return err
			}
			d.SnapshottedTime = 0 // thinsnap makes snapshots of adopted volumes
			st.volumes = append(st.volumes, d)
		}
		return nil
	}))
	return st
}

// dump returns the lines of a bucket, without sequences, which containerd increases meanwhile.
func dump(t testing.TB, path string, b *bolt.Bucket) (lines []string) {
	t.Helper()
	require.NoError(t, b.ForEach(func(k, v []byte) error {
		switch within := b.Bucket(k); {
		case string(k) == "overlayfs":
		case within != nil:
			lines = append(lines, dump(t, path+"/"+string(k), within)...)
		default:
			lines = append(lines, fmt.Sprintf("%s/%s = %q", path, k, v))
		}
		return nil
	}))
	return lines
}

// requireBack requires that the built-in has its former state.
func (s *builtin) requireBack(before state) {
	s.Helper()
	now := s.state()
	require.Equal(s, before.files, now.files)
	require.Equal(s, before.meta, now.meta)
	require.Equal(s, before.volumes, now.volumes)
	require.Equal(s, before.used, now.used)
	require.Equal(s, before.mapped, now.mapped)
	require.False(s, s.canUndo())
	require.NoFileExists(s, filepath.Join(s.root, "metadata.db"))
}

// requireEmpty requires that the pool has no volumes.
func (s *builtin) requireEmpty() {
	s.Helper()
	st := s.state()
	require.Empty(s, st.volumes)
	require.Zero(s, st.used)
	require.Empty(s, st.mapped)
}

// mapped returns the mapped devices of the pool's volumes.
func (s *builtin) mapped() []string {
	s.Helper()
	devices, err := s.control.List()
	require.NoError(s, err)
	var all []string
	for _, d := range devices {
		_, targets, err := s.control.Table(d.Name)
		require.NoError(s, err)
		if len(targets) == 1 && targets[0].Type == thin.Type {
			all = append(all, d.Name+" "+targets[0].Params)
		}
	}
	return all
}

// stopZeroing loads the pool's first table again, like a script that loads the pool at boot.
func (s *builtin) stopZeroing() {
	s.Helper()
	_, targets, err := s.control.Table(s.poolName)
	require.NoError(s, err)
	table, err := thin.ParsePoolTable(targets[0].Params)
	require.NoError(s, err)
	table.SkipBlockZeroing = true
	target, err := table.Target(targets[0].Length)
	require.NoError(s, err)
	_, err = s.control.Load(s.poolName, []devmap.Target{target}, false)
	require.NoError(s, err)
	_, err = s.control.Resume(s.poolName)
	require.NoError(s, err)
}

// data returns a checksum of the pool's data.
func (s *builtin) data() string {
	s.Helper()
	unix.Sync()
	f, err := os.Open(s.dataPath)
	require.NoError(s, err)
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	require.NoError(s, err)
	return fmt.Sprintf("%x", h.Sum(nil))
}

// pull changes containerd's database like a pull for another snapshotter.
func (s *builtin) pull(number int) {
	s.Helper()
	db, err := bolt.Open(s.metaPath(), 0, &bolt.Options{NoFreelistSync: true, Timeout: time.Second})
	require.NoError(s, err)
	name := []byte(fmt.Sprint("pulled-", number))
	require.NoError(s, db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte("v1")).Bucket([]byte("default")).Bucket([]byte("snapshots"))
		b, err := b.CreateBucketIfNotExists([]byte("overlayfs"))
		if err == nil {
			b, err = b.CreateBucket(name)
		}
		if err == nil {
			err = b.Put([]byte("name"), bytes.Join([][]byte{[]byte("default/1"), name}, []byte("/")))
		}
		return err
	}))
	require.NoError(s, db.Close())
}
