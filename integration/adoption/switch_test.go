package adoption

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
)

// report is the output of `thinsnap adopt devmapper --json` without --yes.
type report struct {
	Possible  bool
	Damaged   int
	Foreign   int
	Reload    *struct{ Table, LVM string }
	Obstacles []struct{ Subject, Text, Remedy string }
	Snapshots []struct {
		Namespace, Name, Device, Becomes, Problem, Remedy string

		DeviceID uint32 `json:"device_id"`
	}
}

// newThinsnap configures thinsnap for the node as in docs/migration.md, with other directories.
func (n *node) newThinsnap(t *testing.T) {
	t.Helper()
	s, err := harness.NewThinsnap(harness.Options{
		PoolName: n.pool.Name(), Program: n.tools.Thinsnap, Dir: filepath.Join(n.Dir, "thinsnap"), Sockets: harnesstest.ShortDir(t),
	})
	require.NoError(t, err)
	n.thinsnap = &harnesstest.Thinsnap{Thinsnap: s}
	converted, err := harness.Run(nil, s.Program, "config", "from-containerd", n.Config())
	require.NoError(t, err)
	if n.pool.lvm != "" {
		converted = strings.ReplaceAll(converted, `"/dev/mapper/`+n.pool.Name()+`"`, fmt.Sprintf("%q", n.pool.lvm))
	}
	directories := fmt.Sprintf("root = %q\naddress = %q\nadmin_address = %q\n", s.Root, s.Proxy().Address, filepath.Join(s.Sockets, "admin.sock"))
	require.NoError(t, os.WriteFile(s.Config(), []byte(directories+converted), 0o600))
	t.Cleanup(func() {
		if s.Process == nil {
			return
		}
		s.Kill()
		if t.Failed() {
			t.Log(s.Log())
		}
	})
}

func (n *node) runAdopt(args ...string) (string, error) {
	return n.thinsnap.TryRun(nil, append([]string{"adopt", "devmapper", "--containerd-config", n.Config()}, args...)...)
}

// plan has thinsnap plan the adoption, which changes nothing, and returns thinsnap's error.
func (n *node) plan(t *testing.T, args ...string) (r report, err error) {
	t.Helper()
	before := n.state(t)
	start := time.Now()
	out, err := n.runAdopt(append(args, "--json")...)
	t.Logf("%5.1f s  plan of the adoption", time.Since(start).Seconds())
	require.NoError(t, json.Unmarshal([]byte(out), &r), "%v\n%s", err, out)
	require.Equal(t, before, n.state(t), "a plan changes nothing")
	return r, err
}

// state describes everything that a plan could change: files, the pool, the mapped devices.
func (n *node) state(t *testing.T) []string {
	t.Helper()
	var lines []string
	for _, dir := range []string{n.Devmapper.Root, filepath.Join(n.Root, "io.containerd.metadata.v1.bolt"), n.thinsnap.Root} {
		files, err := filepath.Glob(filepath.Join(dir, "*"))
		require.NoError(t, err)
		for _, file := range files {
			content, err := os.ReadFile(file)
			require.NoError(t, err)
			lines = append(lines, fmt.Sprintf("%s %x", file, sha256.Sum256(content)))
		}
	}
	return append(lines, command(t, "dmsetup", "table", n.pool.Name()), command(t, "dmsetup", "status", n.pool.Name()),
		command(t, "dmsetup", "info", "--columns", "--noheadings", "--options", "name,open,suspended"))
}

func (n *node) adopt(t *testing.T, args ...string) {
	t.Helper()
	start := time.Now()
	out, err := n.runAdopt(append(args, "--yes", "--json")...)
	require.NoError(t, err)
	t.Logf("%5.1f s  adoption", time.Since(start).Seconds())
	n.patchPrinted(t, out)
}

// configurations returns containerd's configuration as it is, and as thinsnap would change it.
func (n *node) configurations(t *testing.T) (old, adopted []byte) {
	t.Helper()
	old, err := os.ReadFile(n.Config())
	require.NoError(t, err)
	out, err := n.runAdopt("--json")
	require.NoError(t, err)
	n.patchPrinted(t, out)
	adopted, err = os.ReadFile(n.Config())
	require.NoError(t, err)
	n.configure(t, old)
	return old, adopted
}

// configure replaces containerd's configuration, for its next start.
func (n *node) configure(t *testing.T, content []byte) {
	t.Helper()
	require.NoError(t, os.WriteFile(n.Config(), content, 0o600))
}

// patchPrinted applies the patch in a command's output to containerd's configuration.
func (n *node) patchPrinted(t *testing.T, printed string) {
	t.Helper()
	var r struct{ Configuration struct{ Patch, Error string } }
	require.NoError(t, json.Unmarshal([]byte(printed), &r), printed)
	require.Empty(t, r.Configuration.Error)
	n.applyPatch(t, r.Configuration.Patch)
}

func (n *node) applyPatch(t *testing.T, patch string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "patch")
	require.NoError(t, os.WriteFile(file, []byte(patch), 0o600))
	command(t, "patch", "-d", "/", "-p1", "-i", file)
}

// startAdopted starts thinsnap and containerd on the adopted pool.
func (n *node) startAdopted(t *testing.T) {
	t.Helper()
	n.thinsnap.Start(t)
	n.start(t)
}

// removeLeftovers removes the built-in's volumes that thinsnap keeps as leftovers.
func (n *node) removeLeftovers(t *testing.T) int {
	t.Helper()
	kept, err := n.thinsnap.Admin().Leftovers(t.Context())
	require.NoError(t, err)
	for _, leftover := range kept {
		_, err := n.thinsnap.Admin().RemoveLeftover(t.Context(), leftover.DeviceID)
		require.NoError(t, err)
	}
	return len(kept)
}

// requireAsBefore compares the pool, after all removals, with its state before the built-in used it.
func (n *node) requireAsBefore(t *testing.T) {
	t.Helper()
	require.Contains(t, n.thinsnap.Run(t, "check"), "no problems found")
	n.thinsnap.Stop(t)
	require.NoError(t, n.thinsnap.Destroy())
	n.deleteForeign(t)
	n.pool.awaitUsed(t, n.before)
}
