package harnesstest

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/dmtest/fsck"
)

// Thinsnap is a thinsnap daemon with a pool of its own. It can be stopped and started again.
type Thinsnap struct{ *harness.Thinsnap }

// StartThinsnap makes a pool in files and starts the daemon on it. At the end of the test the daemon ends, and the pool
// is destroyed.
func StartThinsnap(t testing.TB, tools harness.Tools, poolName string) *Thinsnap {
	t.Helper()
	return StartThinsnapWith(t, tools, poolName, harness.Options{})
}

// StartThinsnapWith is StartThinsnap with other settings.
func StartThinsnapWith(t testing.TB, tools harness.Tools, poolName string, o harness.Options) *Thinsnap {
	t.Helper()
	s := NewThinsnap(t, tools, poolName, o)
	s.Start(t)
	return s
}

// NewThinsnap is StartThinsnapWith without the start of the daemon.
func NewThinsnap(t testing.TB, tools harness.Tools, poolName string, o harness.Options) *Thinsnap {
	t.Helper()
	o.PoolName, o.Program = poolName, cmp.Or(o.Program, tools.Thinsnap)
	if o.Dir == "" {
		o.Dir = t.TempDir()
		// containerd's test suite clears the umask, and thinsnap refuses a root in a directory that others can replace.
		require.NoError(t, os.Chmod(o.Dir, 0o700))
	}
	o.Sockets = ShortDir(t)
	s, err := harness.NewThinsnap(o)
	require.NoError(t, err)
	t.Cleanup(func() {
		if s.Process == nil {
			return
		}
		s.Kill()
		if t.Failed() {
			t.Log(s.Log())
		}
		(&Thinsnap{s}).checkLayers(t)
		require.NoError(t, s.Destroy())
	})
	return &Thinsnap{s}
}

// checkLayers checks the layers of a daemon that has ended, unless its pool is not in the kernel.
func (s *Thinsnap) checkLayers(t testing.TB) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(s.Root, "metadata.db")); errors.Is(err, os.ErrNotExist) {
		return
	}
	start := time.Now()
	err := fsck.Root(context.Background(), s.Root)
	if errors.Is(err, devmapper.ErrNotFound) || errdefs.IsNotFound(err) {
		t.Logf("layers not checked: %v", err)
		return
	}
	if err != nil {
		t.Error(err) // continue: the pool still has to be destroyed
	}
	t.Logf("%5.1f s  layers checked", time.Since(start).Seconds())
}

// Start starts the daemon, for the first time or after its end. The daemon may outlive a subtest that calls Start.
func (s *Thinsnap) Start(t testing.TB) {
	t.Helper()
	require.NoError(t, s.Thinsnap.Start())
}

// Launch is Start without the wait, for a daemon that may never be ready. The variables are added to its environment.
func (s *Thinsnap) Launch(t testing.TB, env ...string) {
	t.Helper()
	require.NoError(t, s.Thinsnap.Launch(env...))
}

// Stop ends the daemon in an orderly way, and then checks all layers.
func (s *Thinsnap) Stop(t testing.TB) {
	t.Helper()
	require.NoError(t, s.Thinsnap.Stop())
	s.checkLayers(t)
}

// Run runs a thinsnap command and returns its standard output.
func (s *Thinsnap) Run(t testing.TB, args ...string) string {
	t.Helper()
	return must(t, "thinsnap", func(args ...string) (string, error) { return s.TryRun(nil, args...) }, args...)
}

// Page runs `thinsnap page` until the test ends, and returns the address that it prints.
func (s *Thinsnap) Page(t testing.TB) (url string) {
	t.Helper()
	p, url, err := s.Thinsnap.Page(t.TempDir())
	end(t, p)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Stop()) })
	return url
}

// Snapshotter returns a client of the daemon like containerd's. The connection ends with the test.
func (s *Thinsnap) Snapshotter(t testing.TB) snapshots.Snapshotter {
	t.Helper()
	conn, sn, err := s.Dial()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	return sn
}

// SnapshotterOf is Snapshotter for another key space.
func (s *Thinsnap) SnapshotterOf(t testing.TB, client string) snapshots.Snapshotter {
	t.Helper()
	conn, sn, err := s.DialAs(client)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	return sn
}

// Info returns the output of `thinsnap info --json`.
func (s *Thinsnap) Info(t testing.TB) admin.Info {
	t.Helper()
	var info admin.Info
	require.NoError(t, json.Unmarshal([]byte(s.Run(t, "info", "--json")), &info))
	return info
}

// MappedDevices lists the names of the mapped devices that start with a prefix.
func MappedDevices(t testing.TB, prefix string) []string {
	t.Helper()
	files, err := filepath.Glob("/sys/block/dm-*/dm/name")
	require.NoError(t, err)
	var names []string
	for _, file := range files {
		name, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV) {
			continue // deleted meanwhile, or being deleted
		}
		require.NoError(t, err)
		if strings.HasPrefix(string(name), prefix) {
			names = append(names, strings.TrimSpace(string(name)))
		}
	}
	return names
}
