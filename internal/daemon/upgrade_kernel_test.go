package daemon

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/internal/check"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// upgradeTop is the directory of the fixtures: the record of a loop pool has its path.
const upgradeTop = "/run/thinsnap-upgrade"

// fixture is a root and a pool whose store has format 1, as left behind by a kill
// (testdata/upgrade/README.md describes the content).
type fixture struct {
	*Daemon
	config config.Config
	close  func()
	usages map[string]int64 // of layers
}

// restore restores the fixture of a mode. If running, the pool, active volumes and mounts are in
// the kernel, as after a kill; if not, as after a reboot.
func restore(t *testing.T, mode string, running bool) *fixture {
	t.Helper()
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	c := config.Default()
	c.Root = upgradeTop + "/root"
	c.Filesystem.BaseSize = 64 << 20
	prefix, diskBytes := "old", "1g"
	switch mode {
	case config.ModeLoop:
		c.Pool.Name = "old"
	case config.ModeDirectLVM:
		c.Pool.Mode, c.Pool.Name, c.Pool.DirectLVM.Device = config.ModeDirectLVM, "old", "/dev/ubdb"
		diskBytes = "4g"
	case config.ModeExisting:
		c.Pool.Mode, c.Pool.Existing.Device = config.ModeExisting, "by-hand"
		prefix = "thinsnap"
	}
	control, err := devmapper.Open()
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(upgradeTop, 0o700))
	require.NoError(t, unix.Mount("tmpfs", upgradeTop, "tmpfs", 0, "size="+diskBytes))
	t.Cleanup(func() {
		// The containers' mounts, and thinsnap's own mounts of running containers.
		mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(upgradeTop))
		require.NoError(t, err)
		for _, m := range slices.Backward(mounts[1:]) {
			_ = unix.Unmount(m.Mountpoint, 0)
		}
		deactivateOurs(t, control, prefix)
		switch mode {
		case config.ModeLoop:
			_ = control.Deactivate("old")
		case config.ModeDirectLVM:
			run(t, "vgchange", "--activate", "n", "old")
		case config.ModeExisting:
			_ = control.Deactivate("by-hand")
		}
		for _, file := range []string{"disk", "data", "metadata"} {
			detach(t, filepath.Join(upgradeTop, file))
		}
		require.NoError(t, unix.Unmount(upgradeTop, 0))
		require.NoError(t, control.Close())
	})
	args := []string{"testdata/upgrade/restore.sh", mode, upgradeTop}
	if running {
		args = append(args, "running")
	}
	run(t, args...)
	return &fixture{config: c, usages: map[string]int64{}}
}

func detach(t *testing.T, file string) {
	t.Helper()
	loops, err := exec.Command("losetup", "--noheadings", "--output", "NAME", "--associated", file).Output()
	require.NoError(t, err)
	for _, loop := range strings.Fields(string(loops)) {
		run(t, "losetup", "--detach", loop)
	}
}

// mounted returns the mountpoint of the snapshot with this file.
func (f *fixture) mounted(t *testing.T, file string) string {
	t.Helper()
	found := glob(t, upgradeTop+"/mnt/*/"+file)
	require.Len(t, found, 1)
	return filepath.Dir(found[0])
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	all, err := filepath.Glob(pattern)
	require.NoError(t, err)
	return all
}

// open opens the root, settles the volumes found by the start, and returns the kinds of check's
// findings. The root is closed at the end of the test.
func (f *fixture) open(t *testing.T) []check.Kind {
	t.Helper()
	d, err := Open(t.Context(), f.config)
	require.NoError(t, err)
	f.close = sync.OnceFunc(func() { require.NoError(t, d.Close()) })
	t.Cleanup(f.close)
	f.Daemon = d
	require.NoError(t, d.snapshotter.Cleanup(t.Context()))
	return f.check(t)
}

// check returns the kinds of check's findings, without the over-promised space of the fixture's
// pool.
func (f *fixture) check(t *testing.T) (kinds []check.Kind) {
	t.Helper()
	report, err := f.Check(t.Context(), false)
	require.NoError(t, err)
	for _, finding := range report.Findings {
		t.Log(finding.Subject, finding.Text)
		kinds = append(kinds, finding.Kind)
	}
	if f.config.Pool.Mode == config.ModeDirectLVM {
		return kinds
	}
	// A sparse file promises more than the disk below it has.
	require.Contains(t, kinds, check.KindSpace)
	return slices.DeleteFunc(kinds, func(k check.Kind) bool { return k == check.KindSpace })
}

// fixtureLayer returns the key of a committed layer. An image of three layers has the digests 1, 2
// and 3; a and b differ in size; f is an xfs.
func fixtureLayer(number int, digest string) string {
	return fmt.Sprintf("k8s.io/%d/sha256:%s", number, strings.Repeat(digest, 64))
}

// content is the content of the file with this name in the fixtures.
func content(name string) []byte { return bytes.Repeat([]byte(name+"\n"), 4096) }

// requireContent checks the files of the mounted snapshot.
func requireContent(t *testing.T, mounts []mount.Mount, files ...string) {
	t.Helper()
	require.NoError(t, mount.WithReadonlyTempMount(t.Context(), mounts, func(dir string) error {
		for _, name := range files {
			got, err := os.ReadFile(filepath.Join(dir, name))
			require.NoError(t, err)
			require.Equal(t, string(content(name)), string(got), name)
		}
		return nil
	}))
}

// requireLayersOfFixture views each committed layer, and creates and removes a container of it.
func (f *fixture) requireLayersOfFixture(t *testing.T) {
	t.Helper()
	for key, files := range map[string][]string{
		fixtureLayer(2, "1"): {"layer-1"}, fixtureLayer(4, "2"): {"layer-1", "layer-2"},
		fixtureLayer(6, "3"): {"layer-1", "layer-2", "layer-3"}, fixtureLayer(21, "a"): {"layer-odd-16"},
		fixtureLayer(23, "b"): {"layer-odd-40"}, fixtureLayer(41, "f"): {"layer-xfs"},
	} {
		// Its record has no usage.
		usage, err := f.snapshotter.Usage(t.Context(), key)
		require.NoError(t, err)
		require.Positive(t, usage.Size)
		require.Equal(t, cmp.Or(f.usages[key], usage.Size), usage.Size)
		f.usages[key] = usage.Size
		mounts, err := f.snapshotter.View(t.Context(), "view", key)
		require.NoError(t, err)
		requireContent(t, mounts, files...)
		require.NoError(t, f.snapshotter.Remove(t.Context(), "view"))
		mounts, err = f.snapshotter.Prepare(t.Context(), "new", key)
		require.NoError(t, err)
		requireContent(t, mounts, files...)
		require.NoError(t, f.snapshotter.Remove(t.Context(), "new"))
	}
	require.NoError(t, f.snapshotter.Cleanup(t.Context()))
}

// someModes returns the given modes, or all modes if dmtest.Thorough.
func someModes(modes ...string) []string {
	if dmtest.Thorough() {
		return config.Modes()
	}
	return modes
}

// TestUpgradeWithRunningContainers: an earlier version was killed, and this one is started.
func TestUpgradeWithRunningContainers(t *testing.T) {
	for _, mode := range someModes(config.ModeLoop, config.ModeDirectLVM) {
		t.Run(mode, func(t *testing.T) {
			f := restore(t, mode, true)
			// A container that was removed while it was mounted.
			require.Equal(t, []check.Kind{check.KindTrash}, f.open(t))
			require.NoError(t, unix.Unmount(f.mounted(t, "removed"), 0))
			f.close()
			for range 2 { // the second time, the store is upgraded already
				require.Empty(t, f.open(t))
				f.requireLayersOfFixture(t)
				for file, key := range map[string]string{"synced": "k8s.io/10/running", "synced-xfs": "k8s.io/41/running-xfs"} {
					require.NoError(t, os.WriteFile(filepath.Join(f.mounted(t, file), "written"), content("written"), 0o600))
					mounts, err := f.snapshotter.Mounts(t.Context(), key)
					require.NoError(t, err)
					requireContent(t, mounts, "written")
				}
				f.close()
			}
			require.Empty(t, f.open(t))
			require.NoError(t, f.snapshotter.Commit(t.Context(), "committed", "k8s.io/10/running"))
			mounts, err := f.snapshotter.View(t.Context(), "view", "committed")
			require.NoError(t, err)
			requireContent(t, mounts, "layer-1", "layer-2", "layer-3", "synced", "written")
			require.NoError(t, f.snapshotter.Remove(t.Context(), "view"))
			f.requireStopped(t)
		})
	}
}

// requireStopped checks the containers that were not mounted. The name of one begins like the key
// of an unpack.
func (f *fixture) requireStopped(t *testing.T) {
	t.Helper()
	for key, file := range map[string]string{"default/11/extract-logs": "logs", "default/12/stopped": "stopped"} {
		mounts, err := f.snapshotter.Mounts(t.Context(), key)
		require.NoError(t, err)
		requireContent(t, mounts, file)
		require.NoError(t, f.snapshotter.Commit(t.Context(), "committed "+file, key))
		require.NoError(t, f.snapshotter.Remove(t.Context(), "committed "+file))
	}
}

// TestUpgradeAfterAReboot: an earlier version was killed by a reboot. Its unpack was interrupted,
// and is refused.
func TestUpgradeAfterAReboot(t *testing.T) {
	for _, mode := range someModes(config.ModeExisting) {
		t.Run(mode, func(t *testing.T) {
			f := restore(t, mode, false)
			require.Empty(t, f.open(t))
			f.requireLayersOfFixture(t)
			f.requireStopped(t)
			for key, file := range map[string]string{"k8s.io/10/running": "synced", "k8s.io/41/running-xfs": "synced-xfs"} {
				mounts, err := f.snapshotter.Mounts(t.Context(), key)
				require.NoError(t, err)
				require.NoError(t, mount.WithTempMount(t.Context(), mounts, func(dir string) error {
					got, err := os.ReadFile(filepath.Join(dir, file))
					require.Equal(t, string(content(file)), string(got))
					return err
				}))
			}
			unpack := "k8s.io/13/extract-987654321-zZ9x sha256:" + strings.Repeat("4", 64)
			_, err := f.snapshotter.Mounts(t.Context(), unpack)
			require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
			require.ErrorIs(t, f.snapshotter.Commit(t.Context(), "layer", unpack), errdefs.ErrFailedPrecondition)
			require.NoError(t, f.snapshotter.Remove(t.Context(), unpack))
		})
	}
}
