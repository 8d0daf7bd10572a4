package snapshotter_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// An xfs on a pool that fails writes retries its metadata, and is whole once the pool has space: a limit of
// retries would shut it down. A failed write of its log shuts it down at once; synced content is intact
// after the next mount. An unmount always ends.
func TestKernelXFSOnAFullPool(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	noSpaceTimeout(t, "1")
	for name, ownLog := range map[string]bool{"metadata": true, "log": false} {
		t.Run(name, func(t *testing.T) {
			ctx, h := newFaultHost(t, places{}, snapshotter.Config{
				Filesystem: filesystem.XFS, BaseBytes: filesystem.MinXFS, Discard: true,
				MkfsOptions: []string{"--unsupported", "-l", "size=10m"},
			}, 96<<20, 8<<20)
			require.NoError(t, h.prepare(ctx, "hog", ""))
			require.NoError(t, h.prepare(ctx, "box", ""))
			box := h.mount(ctx, t, "box")
			write(t, box, "synced", "x")
			require.NoError(t, syncOf(box))
			if ownLog {
				require.NoError(t, wrapLog(box))
			}
			hog := h.mount(ctx, t, "hog")
			require.ErrorIs(t, writeMiB(filepath.Join(hog, "file"), 128), unix.ENOSPC)
			require.Eventually(t, func() bool {
				status, err := h.pool.Status(ctx)
				return err == nil && status.Mode == thin.ModeOutOfDataSpace && !status.QueueIfNoSpace
			}, time.Minute, 20*time.Millisecond)
			if ownLog {
				for i := range 300 { // new blocks for inodes
					require.NoError(t, os.Mkdir(filepath.Join(box, fmt.Sprint("new", i)), 0o700))
				}
				require.NoError(t, syncOf(box), "the log is written")
			} else {
				require.ErrorIs(t, wrapLog(box), unix.EIO)
			}

			require.NoError(t, unix.Unmount(hog, 0))
			require.NoError(t, h.Remove(ctx, "hog"))
			require.NoError(t, h.Cleanup(ctx))
			h.awaitMode(t, thin.ModeReadWrite)
			if ownLog {
				require.NoError(t, syncOf(box))
				write(t, box, "healed", "x")
				require.DirExists(t, filepath.Join(box, "new299"))
			} else {
				require.ErrorIs(t, syncOf(box), unix.EIO, "it stays shut down until the unmount")
			}
			require.NoError(t, unix.Unmount(box, 0))
			mounts, err := h.Mounts(ctx, "box")
			require.NoError(t, err)
			mounted(t, mounts, func(dir string) {
				require.Equal(t, "x", read(t, dir, "synced"))
				if ownLog {
					require.DirExists(t, filepath.Join(dir, "new299"))
				}
			})
		})
	}
}

// wrapLog writes more than 10 MiB to the log, which then has blocks of the snapshot's own.
func wrapLog(dir string) error {
	for round := range 30 {
		for i := range 100 {
			file := filepath.Join(dir, fmt.Sprint("attr", i))
			if round == 0 {
				if err := os.WriteFile(file, nil, 0o600); err != nil {
					return err
				}
			}
			value := strings.Repeat(fmt.Sprintf("%3d", round), 1000)
			if err := unix.Setxattr(file, "user.x", []byte(value), 0); err != nil {
				return err
			}
		}
		if err := syncOf(dir); err != nil {
			return err
		}
	}
	return nil
}

func writeMiB(path string, n int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for range n {
		if _, err := f.Write(make([]byte, 1<<20)); err != nil {
			return err
		}
	}
	return f.Sync()
}

func syncOf(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}
