package adoption

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// TestKilled kills the adoption and its undo at each of their failpoints. An adoption can then be completed or undone,
// and an undo can be completed, also after work of containerd in between. The node works after each.
func TestKilled(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	dmtest.RequireThorough(t)
	tools, err := harness.FindTools("../..")
	require.NoError(t, err)
	n := newNode(t, tools, variant{release: tools.Releases[0], filesystem: "ext4", skipsZeroing: true, small: true})
	n.onlySnapshots(t)
	n.newThinsnap(t)
	before := reference{n.trees(t, harness.DevmapperName), n.inventory(t, harness.DevmapperName)}
	n.stop(t)
	old, adopted := n.configurations(t)

	all := failpoints(t)
	adopting := n.passed(t, all, "--yes")
	undoing := n.passed(t, all, "--undo")
	t.Logf("passes %v, and %v during the undo", adopting, undoing)
	own := slices.DeleteFunc(all, func(name string) bool { return !strings.HasPrefix(name, "adopt") })
	require.Subset(t, slices.Concat(adopting, undoing), own, "each failpoint of package adopt is passed")

	for i, failpoint := range adopting {
		t.Run(failpoint, func(t *testing.T) {
			n.pool.load(t)
			n.killedAt(t, failpoint, "--yes")
			if i%2 == 0 {
				n.tryOther(t, old, adopted)
				n.adopt(t)
				n.requireAdopted(t, before)
				n.undo(t)
			} else if _, err := n.runAdopt("--undo"); err != nil {
				require.ErrorContains(t, err, errdefs.ErrNotFound.Error(), "nothing was begun")
			}
			n.configure(t, old)
			n.requireBuiltin(t, before)
		})
		if t.Failed() {
			return
		}
	}
	for _, failpoint := range undoing {
		t.Run(failpoint, func(t *testing.T) {
			n.adopt(t)
			n.killedAt(t, failpoint, "--undo")
			n.configure(t, old)
			n.tryOther(t, old, adopted)
			_, err := n.runAdopt("--undo")
			if err != nil {
				require.ErrorContains(t, err, errdefs.ErrNotFound.Error(), "all was done")
			}
			n.requireBuiltin(t, before)
		})
		if t.Failed() {
			return
		}
	}
}

func failpoints(t *testing.T) (names []string) {
	t.Helper()
	name := regexp.MustCompile(`// gofail: var (\w+) `)
	for _, dir := range []string{"devmapper", "internal", "metadata", "snapshotter"} {
		require.NoError(t, filepath.WalkDir(filepath.Join("../..", dir), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") {
				return err
			}
			source, err := os.ReadFile(path)
			for _, found := range name.FindAllSubmatch(source, -1) {
				names = append(names, string(found[1]))
			}
			return err
		}))
	}
	require.NotEmpty(t, names)
	slices.Sort(names)
	return slices.Compact(names)
}

// withFailpoints runs `thinsnap adopt devmapper` with its failpoints enabled.
func (n *node) withFailpoints(t *testing.T, action string, names []string, args ...string) (string, error) {
	t.Helper()
	program, err := filepath.Abs("../../bin/thinsnap-failpoints")
	require.NoError(t, err)
	require.FileExists(t, program, "integration/failpoint/build.sh makes it")
	terms := make([]string, len(names))
	for i, name := range names {
		terms[i] = name + "=" + action
	}
	return harness.Run(append(os.Environ(), "GOFAIL_FAILPOINTS="+strings.Join(terms, ";")), program,
		append([]string{"--config", n.thinsnap.Config(), "adopt", "devmapper", "--containerd-config", n.Config()}, args...)...)
}

func (n *node) passed(t *testing.T, names []string, args ...string) (passed []string) {
	t.Helper()
	out, err := n.withFailpoints(t, "print", names, args...)
	require.NoError(t, err)
	for line := range strings.Lines(out) {
		name, ok := strings.CutPrefix(strings.TrimSpace(line), "failpoint print: ")
		if ok && !slices.Contains(passed, name) {
			passed = append(passed, name)
		}
	}
	require.NotEmpty(t, passed)
	return passed
}

// killedAt kills an adoption or its undo. If it is unfinished then, thinsnap does not start.
func (n *node) killedAt(t *testing.T, failpoint string, args ...string) {
	t.Helper()
	_, err := n.withFailpoints(t, "return", []string{failpoint}, args...)
	require.ErrorContains(t, err, "killed")
	if _, err := os.Stat(filepath.Join(n.thinsnap.Root, "adopt/journal.json")); err != nil {
		require.ErrorIs(t, err, os.ErrNotExist)
		return
	}
	n.thinsnap.Launch(t)
	<-n.thinsnap.Ended()
	require.Contains(t, n.thinsnap.Log(), "thinsnap adopt devmapper")
	require.NoError(t, os.Remove(n.thinsnap.LogFile()))
}

// tryOther has containerd pull an image for another snapshotter, and collect garbage. While a database of the built-in
// is renamed, containerd 2.x does not work with the old configuration.
func (n *node) tryOther(t *testing.T, old, adopted []byte) {
	t.Helper()
	if _, err := os.Stat(n.poolDatabase() + ".adopted"); err == nil {
		n.configure(t, adopted)
		defer n.configure(t, old)
	}
	n.start(t)
	n.Pull(t, "overlayfs", n.images.Busybox)
	n.must(t, defaultNS, "overlayfs", client.collect)
	n.stop(t)
}

// requireAdopted: containerd runs with thinsnap, which has the built-in's content. Both are stopped again.
func (n *node) requireAdopted(t *testing.T, want reference) {
	t.Helper()
	n.startAdopted(t)
	want.trees.requireSame(t, n.trees(t, harness.ThinsnapName))
	require.Subset(t, n.inventory(t, harness.ThinsnapName), want.inventory)
	require.Contains(t, n.thinsnap.Run(t, "check"), "no problems found")
	n.stop(t)
	n.thinsnap.Stop(t)
}
