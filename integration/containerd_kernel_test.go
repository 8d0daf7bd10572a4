// Package integration tests thinsnap with containerd, its clients and a real kernel.
package integration

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// standInVariable names one of containerd's own snapshotters to test instead of thinsnap: a failure that both have is
// not thinsnap's. The stand-in needs no device-mapper.
const standInVariable = "THINSNAP_TEST_SNAPSHOTTER"

// testbed is a containerd with the snapshotter under test.
type testbed struct {
	*harnesstest.Containerd
	snapshotter string
	thinsnap    *harnesstest.Thinsnap // nil for a stand-in
	images      harnesstest.Images
	secure      string // the small image's address with TLS
	cni         string // directory of network plugins
}

// TestContainerd runs all tests on one containerd of each release, because starting one takes seconds in a guest
// without KVM. Each test leaves the snapshotter empty.
func TestContainerd(t *testing.T) {
	standIn := os.Getenv(standInVariable)
	if standIn == "" {
		dmtest.RequireKernel(t)
	}
	dmtest.NoLeaks(t)
	tools, err := harness.FindTools("..")
	require.NoError(t, err)
	images := harnesstest.StartRegistry(t, tools)
	secure, trust := harnesstest.ServeTLS(t, images.Busybox)

	for _, release := range slices.Concat(tools.Releases, tools.MoreReleases) {
		t.Run(release.Name, func(t *testing.T) {
			if slices.Contains(tools.MoreReleases, release) {
				dmtest.RequireThorough(t)
			}
			t.Parallel()
			harnesstest.Cell(t, "containerd", filepath.Join(release.Dir, "containerd"))
			b := &testbed{snapshotter: standIn, images: images, secure: secure, cni: tools.CNI}
			setup := harness.Setup{Dir: harnesstest.NewDisk(t), Env: []string{trust}}
			if standIn == "" {
				b.thinsnap = harnesstest.StartThinsnap(t, tools, release.Name)
				b.snapshotter = harness.ThinsnapName
				proxy := b.thinsnap.Proxy()
				if release.DifferProxies {
					proxy.Differ = "thinsnap-diff"
				}
				setup.Proxies = []harness.Proxy{proxy}
			}
			b.Containerd = harnesstest.StartContainerdWith(t, tools, release, setup)
			for _, test := range []struct {
				name string
				run  func(*testing.T, *testbed)
				// newest: older releases run it only if dmtest.Thorough.
				newest bool
			}{
				{"pull", testPull, false},
				{"annotations", testAnnotations, true},
				{"same tree as overlayfs", testSameTree, true},
				{"snapshot commands", testSnapshotCommands, true},
				{"run", testRun, false},
				{"commit", testCommit, true}, // restart commits, too
				{"diff", testDiff, true},
				{"pull beside the differ", testPullBesideTheDiffer, false},
				{"fork", testFork, true},
				{"other owners", testOtherOwners, false},
				{"compose", testCompose, true},
				{"restart", testRestart, false},
			} {
				if test.newest && release.Name != tools.Releases[0].Name && !dmtest.Thorough() {
					continue
				}
				t.Run(test.name, func(t *testing.T) {
					test.run(t, b)
					if !t.Failed() {
						b.requireEmpty(t)
					}
				})
			}
		})
	}
}

// requireEmpty requires that nothing is left of removed snapshots. Volumes are deleted in the background.
func (b *testbed) requireEmpty(t *testing.T) {
	t.Helper()
	require.Empty(t, b.Snapshots(t, b.snapshotter))
	require.Empty(t, harnesstest.Mounts(t, b.Root))
	if b.thinsnap == nil {
		return
	}
	require.JSONEq(t, `{"snapshots": []}`, b.thinsnap.Run(t, "ls", "--json"))
	require.Eventually(t, func() bool {
		spares := b.thinsnap.Info(t).Devices.Spares
		devices := harnesstest.MappedDevices(t, b.thinsnap.PoolName)
		return slices.Contains(devices, b.thinsnap.PoolName) && len(devices) == 1+int(spares)
	}, 30*time.Second, 100*time.Millisecond, "mapped devices besides the pool and spares are left")
	require.Zero(t, b.thinsnap.Info(t).Devices.Trash)
}
