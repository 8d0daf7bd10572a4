package snapshotter_test

import (
	"context"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// guests open a snapshot's device as a virtual machine does, and return the function that shuts the machine
// down.
var guests = map[string]func(t *testing.T, disk mount.Mount) (shutdown func()){
	"read-only": func(t *testing.T, disk mount.Mount) func() {
		f, err := os.Open(disk.Source)
		require.NoError(t, err)
		t.Cleanup(func() { f.Close() }) // after a failed test
		return func() { require.NoError(t, f.Close()) }
	},
	// The guest's kernel mounts a loop device on the volume.
	"mounted": func(t *testing.T, disk mount.Mount) func() {
		loop, err := mount.SetupLoop(disk.Source, mount.LoopParams{Autoclear: true})
		require.NoError(t, err)
		defer loop.Close()
		dir, data := t.TempDir(), ""
		if disk.Type == filesystem.XFS {
			data = "nouuid"
		}
		require.NoError(t, unix.Mount(loop.Name(), dir, disk.Type, 0, data))
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }) // after a failed test
		write(t, dir, "file", "of the guest")
		for _, path := range []string{filepath.Join(dir, "file"), dir} {
			f, err := os.Open(path)
			require.NoError(t, err)
			require.NoError(t, f.Sync(), "the file is in the journal")
			require.NoError(t, f.Close())
		}
		return func() { require.NoError(t, unix.Unmount(dir, 0)) }
	},
}

// Mounts does not return a device that a virtual machine has open: even a read-only mount on the host would
// replay the journal under the guest. It returns a mount of a read-only copy.
func TestMountsOfWhatAGuestHasOpen(t *testing.T) {
	for name, boot := range guests {
		for _, fs := range dmtest.Filesystems() {
			t.Run(name+","+fs, func(t *testing.T) {
				ctx, h := newTestHost(t, filesystems[fs])
				disk, err := h.Prepare(ctx, "vm", "")
				require.NoError(t, err)
				mounts, err := h.Mounts(ctx, "vm")
				require.NoError(t, err, "containerd asks before each start")
				require.Equal(t, disk, mounts)
				shutdown := boot(t, disk[0])
				before := written(t, disk[0].Source)
				served, err := h.Mounts(ctx, "vm")
				require.NoError(t, err)
				require.NotEqual(t, disk[0].Source, served[0].Source)
				require.Equal(t, fs, served[0].Type)
				require.Contains(t, served[0].Options, "ro")
				require.Equal(t, 1, h.CountCopies())
				key, err := h.FindMounted(ctx, served[0])
				require.NoError(t, err)
				require.Equal(t, "vm", key)
				require.NoError(t, mount.WithReadonlyTempMount(ctx, served, func(dir string) error {
					if name == "mounted" {
						require.Equal(t, "of the guest", read(t, dir, "file"))
					}
					return nil
				}))
				if name != "mounted" { // a guest writes at any time
					require.Equal(t, before, written(t, disk[0].Source))
				}
				newer, err := h.Mounts(ctx, "vm")
				require.NoError(t, err)
				require.NotEqual(t, served[0].Source, newer[0].Source)
				require.NoError(t, h.Cleanup(ctx))
				require.NoFileExists(t, served[0].Source, "a newer copy has replaced it")
				shutdown()
				require.EventuallyWithT(t, func(c *assert.CollectT) {
					again, err := h.Mounts(ctx, "vm")
					require.NoError(c, err)
					require.Equal(c, disk, again)
				}, time.Minute, 10*time.Millisecond, "the guest's disk is closed soon after the guest has ended")
				mounted(t, disk, func(dir string) {
					if name == "mounted" {
						require.Equal(t, "of the guest", read(t, dir, "file"))
					}
				})
				require.FileExists(t, newer[0].Source)
				require.NoError(t, h.Remove(ctx, "vm"))
				require.NoError(t, h.Cleanup(ctx))
				require.NoError(t, h.Cleanup(ctx))
				require.NoFileExists(t, newer[0].Source, "it was deleted with the snapshot")
				require.Zero(t, h.CountCopies())
			})
		}
	}
}

// A layer cannot be unpacked into a read-only copy.
func TestMountsOfAnUnpackThatIsOpen(t *testing.T) {
	ctx, h := newTestHost(t, filesystems["ext4"])
	disk, err := h.Prepare(ctx, unpackKey, "")
	require.NoError(t, err)
	shutdown := guests["read-only"](t, disk[0])
	_, err = h.Mounts(ctx, unpackKey)
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.ErrorContains(t, err, "fuser -v "+disk[0].Source)
	require.Zero(t, h.CountCopies())
	shutdown()
	again, err := h.Mounts(ctx, unpackKey)
	require.NoError(t, err)
	require.Equal(t, disk, again)
}

// A client can keep a copy mounted for longer than thinsnap runs, and longer than its snapshot exists.
func TestServedCopyThatStaysMounted(t *testing.T) {
	config := filesystems["ext4"]
	ctx, h := newTestHost(t, config)
	disk, err := h.Prepare(ctx, "vm", "")
	require.NoError(t, err)
	shutdown := guests["mounted"](t, disk[0])
	served, err := h.Mounts(ctx, "vm")
	require.NoError(t, err)
	mounted(t, served, func(dir string) {
		require.NoError(t, h.Close())
		require.NoError(t, h.open(ctx, config))
		require.NoError(t, h.Cleanup(ctx))
		require.Equal(t, "of the guest", read(t, dir, "file"))
		newer, err := h.Mounts(ctx, "vm")
		require.NoError(t, err)
		require.NotEqual(t, served[0].Source, newer[0].Source)
		mounted(t, newer, func(dir string) {
			shutdown()
			require.NoError(t, h.Commit(ctx, "layer", "vm"))
			require.NoError(t, h.Cleanup(ctx))
			require.Equal(t, "of the guest", read(t, dir, "file"))
		})
		require.NoError(t, h.Cleanup(ctx))
		require.NoFileExists(t, newer[0].Source)
		require.Equal(t, "of the guest", read(t, dir, "file"))
	})
	require.NoError(t, h.Cleanup(ctx))
	require.NoFileExists(t, served[0].Source)
}

// lookups calls onLookup before each Lookup.
type lookups struct {
	snapshotter.Pool
	onLookup func(id thin.ID)
}

func (l lookups) Lookup(ctx context.Context, id thin.ID) (pool.Volume, error) {
	l.onLookup(id)
	return l.Pool.Lookup(ctx, id)
}

// Mounts waits for a scanner of new devices, and for a mount that begins or ends.
func TestMountsWaitsForAScanner(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, scanner *os.File, disk mount.Mount) (mountType string){
		"closed": func(t *testing.T, scanner *os.File, disk mount.Mount) string {
			noError(t, scanner.Close())
			return disk.Type
		},
		"mounted": func(t *testing.T, scanner *os.File, disk mount.Mount) string {
			noError(t, scanner.Close())
			dir := t.TempDir()
			noError(t, disk.Mount(dir))
			t.Cleanup(func() { noError(t, unix.Unmount(dir, 0)) })
			return "bind"
		},
	} {
		t.Run(name, func(t *testing.T) {
			config := filesystems["ext4"]
			ctx, h := newTestHost(t, config)
			mounts, err := h.Prepare(ctx, "box", "")
			require.NoError(t, err)
			scanner, err := os.Open(mounts[0].Source)
			require.NoError(t, err)
			var asked atomic.Bool
			looks, want := 0, ""
			h.wrap = func(p snapshotter.Pool) snapshotter.Pool {
				return lookups{p, func(id thin.ID) {
					// Mounts holds the volume's lock, so no other operation looks it up.
					if asked.Load() && p.VolumePath(id) == mounts[0].Source {
						if looks++; looks == 3 {
							want = end(t, scanner, mounts[0])
						}
					}
				}}
			}
			require.NoError(t, h.Close())
			require.NoError(t, h.open(ctx, config))
			asked.Store(true)
			again, err := h.Mounts(ctx, "box")
			require.NoError(t, err)
			require.Equal(t, want, again[0].Type)
			require.NoError(t, h.Remove(ctx, "box"))
			require.NoError(t, h.Cleanup(ctx), "thinsnap's own mount ends")
		})
	}
}

// noError is for goroutines of the snapshotter, which require would end.
func noError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}
