package snapshotter_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// freeze freezes a snapshot, and requires that the copy can be mounted only read-only.
func (h *host) freeze(ctx context.Context, t *testing.T, key string) *snapshotter.Frozen {
	t.Helper()
	frozen, err := h.Freeze(ctx, key)
	require.NoError(t, err)
	t.Cleanup(func() { frozen.Release(context.WithoutCancel(ctx)) })
	refuses, err := os.ReadFile("/sys/class/block/" + kernelName(t, frozen.Path) + "/ro")
	require.NoError(t, err)
	require.Equal(t, "1\n", string(refuses), "the device refuses writes")
	return frozen
}

func kernelName(t *testing.T, node string) string {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Stat(node, &st))
	name, err := os.Readlink("/sys/dev/block/" + fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)))
	require.NoError(t, err)
	return filepath.Base(name)
}

func frozenMount(f *snapshotter.Frozen) []mount.Mount {
	options := []string{"ro"}
	if f.Filesystem == filesystem.XFS {
		options = append(options, "nouuid")
	}
	return []mount.Mount{{Type: f.Filesystem, Source: f.Path, Options: options}}
}

// written returns the numbers of sectors written to a device and discarded since its activation
// (Documentation/block/stat.rst).
func written(t *testing.T, dev string) (sectors [2]uint64) {
	t.Helper()
	fields := statistics(t, dev)
	sectors[0], sectors[1] = fields[6], fields[13]
	return sectors
}

func statistics(t *testing.T, dev string) []uint64 {
	t.Helper()
	content, err := os.ReadFile("/sys/class/block/" + kernelName(t, dev) + "/stat")
	require.NoError(t, err)
	fields := make([]uint64, 17)
	for i, field := range strings.Fields(string(content)) {
		fields[i], err = strconv.ParseUint(field, 10, 64)
		require.NoError(t, err)
	}
	return fields
}

// TestFreezeKernel: a frozen device is clean and has the content of its moment. That holds for a snapshot
// that is mounted, open or closed, and after a reboot. The original is only read.
func TestFreezeKernel(t *testing.T) {
	for _, fs := range dmtest.Filesystems() {
		t.Run(fs, func(t *testing.T) {
			ctx, h := newTestHost(t, filesystems[fs])
			mounts, err := h.Prepare(ctx, "box", "")
			require.NoError(t, err)
			var one *snapshotter.Frozen
			mounted(t, mounts, func(dir string) {
				write(t, dir, "file", "first")
				bound, err := h.Mounts(ctx, "box")
				require.NoError(t, err)
				one = h.freeze(ctx, t, "box")
				write(t, dir, "file", "second")
				key, err := h.FindMounted(ctx, bound[0])
				require.NoError(t, err)
				require.Equal(t, "box", key)
				require.FileExists(t, filepath.Join(bound[0].Source, "file"), "our own mount stays")
				require.NoError(t, filesystem.Unmount(filepath.Dir(filepath.Dir(bound[0].Source))), "for the restart")
			})
			require.NoError(t, h.reboot(ctx, filesystems[fs]))
			require.NoFileExists(t, one.Path)
			mounts, err = h.Mounts(ctx, "box")
			require.NoError(t, err)
			before := written(t, mounts[0].Source)
			two := h.freeze(ctx, t, "box")
			require.Equal(t, before, written(t, mounts[0].Source))
			mounted(t, mounts, func(dir string) { write(t, dir, "file", "third") })
			mounted(t, frozenMount(two), func(dir string) { require.Equal(t, "second", read(t, dir, "file")) })

			require.NoError(t, h.Commit(ctx, "layer", "box"))
			layer := h.freeze(ctx, t, "layer")
			view, err := h.View(ctx, "view", "layer")
			require.NoError(t, err)
			require.Equal(t, view[0].Source, layer.Path)
			require.NoError(t, h.Remove(ctx, "view"))
			require.NoError(t, h.Cleanup(ctx))
			mounted(t, frozenMount(layer), func(dir string) { require.Equal(t, "third", read(t, dir, "file")) })
			layer.Release(ctx)
			two.Release(ctx)
			require.NoFileExists(t, two.Path)
			require.NoError(t, h.Cleanup(ctx))
			require.NoFileExists(t, layer.Path)
		})
	}
}

// TestFreezeOfWhatAGuestHasOpen: the journal is replayed in the copy, and the guest's disk is only read.
func TestFreezeOfWhatAGuestHasOpen(t *testing.T) {
	for name, boot := range guests {
		for _, fs := range dmtest.Filesystems() {
			t.Run(name+","+fs, func(t *testing.T) {
				ctx, h := newTestHost(t, filesystems[fs])
				disk, err := h.Prepare(ctx, "vm", "")
				require.NoError(t, err)
				shutdown := boot(t, disk[0])
				before := written(t, disk[0].Source)
				frozen := h.freeze(ctx, t, "vm")
				if name != "mounted" { // a guest writes at any time
					require.Equal(t, before, written(t, disk[0].Source))
				}
				mounted(t, frozenMount(frozen), func(dir string) {
					if name == "mounted" {
						require.Equal(t, "of the guest", read(t, dir, "file"))
					}
				})
				frozen.Release(ctx)
				shutdown()
			})
		}
	}
}

// TestFreezeOfAGuestsOwnDisk: a disk without thinsnap's file system is not frozen, and no copy of it is
// left.
func TestFreezeOfAGuestsOwnDisk(t *testing.T) {
	ctx, h := newTestHost(t, filesystems["ext4"])
	disk, err := h.Prepare(ctx, "vm", "")
	require.NoError(t, err)
	f, err := os.OpenFile(disk[0].Source, os.O_RDWR|unix.O_SYNC, 0)
	require.NoError(t, err)
	defer f.Close()
	_, err = f.WriteAt(make([]byte, 1<<20), 0)
	require.NoError(t, err)
	_, err = h.Freeze(ctx, "vm")
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "virtual machine")
	require.NoError(t, h.Cleanup(ctx))
	require.Empty(t, h.UnrecordedVolumes())
	active, err := h.pool.CountActive(ctx)
	require.NoError(t, err)
	require.Equal(t, 1, active)
}

// TestFreezeOfAnUnpack: an unpack that is mounted without a journal has no whole copy.
func TestFreezeOfAnUnpack(t *testing.T) {
	ctx, h := newTestHost(t, filesystems["ext4"])
	mounts, err := h.Prepare(ctx, unpackKey, "")
	require.NoError(t, err)
	mounted(t, mounts, func(string) {
		_, err = h.Freeze(ctx, unpackKey)
		require.ErrorIs(t, err, errdefs.ErrUnavailable)
		require.ErrorContains(t, err, "still mounted, without a journal")
	})
	h.freeze(ctx, t, unpackKey).Release(ctx)
}

// TestFrozenCopyThatStaysMounted: a daemon that stops or crashes leaves a mounted copy. The next daemon
// deletes it after the unmount.
func TestFrozenCopyThatStaysMounted(t *testing.T) {
	config := filesystems["ext4"]
	ctx, h := newTestHost(t, config)
	_, err := h.Prepare(ctx, "box", "")
	require.NoError(t, err)
	frozen, err := h.Freeze(ctx, "box")
	require.NoError(t, err)
	mounted(t, frozenMount(frozen), func(dir string) {
		require.NoError(t, h.Close())
		require.NoError(t, h.open(ctx, config))
		require.NoError(t, h.Cleanup(ctx))
		_, err := os.ReadDir(dir)
		require.NoError(t, err)
		require.FileExists(t, frozen.Path)
	})
	require.NoError(t, h.Cleanup(ctx))
	require.NoFileExists(t, frozen.Path)
}
