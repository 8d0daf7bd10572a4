package snapshotter_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// TestCopiesGiveSpaceBack: the disk below the pool gets back the blocks of a copy, and those that it shared
// with a removed original.
func TestCopiesGiveSpaceBack(t *testing.T) {
	for _, fs := range dmtest.Filesystems() {
		t.Run(fs, func(t *testing.T) {
			const size = 4 << 20
			ctx, h := newTestHost(t, filesystems[fs])
			mounts, err := h.Prepare(ctx, "box", "")
			require.NoError(t, err)
			empty := h.allocated(t)
			mounted(t, mounts, func(dir string) {
				f, err := os.Create(filepath.Join(dir, "file"))
				require.NoError(t, err)
				defer f.Close()
				rewrite := func(b byte) {
					content := make([]byte, size)
					for i := range content {
						content[i] = b
					}
					_, err := f.WriteAt(content, 0)
					require.NoError(t, err)
					require.NoError(t, f.Sync())
				}
				rewrite('a')
				for round := range 5 {
					copied := h.freeze(ctx, t, "box")
					rewrite('b' + byte(round))
					copied.Release(ctx)
					require.NoError(t, h.Cleanup(ctx))
				}
				require.Less(t, h.allocated(t), empty+3*size)
			})
			copied := h.freeze(ctx, t, "box")
			require.NoError(t, h.Remove(ctx, "box"))
			require.NoError(t, h.Cleanup(ctx))
			copied.Release(ctx)
			require.NoError(t, h.Cleanup(ctx))
			require.Less(t, h.allocated(t), empty+size)
		})
	}
}

// TestCopiesOfACrashGiveSpaceBack: also after a reboot, and with a removed original.
func TestCopiesOfACrashGiveSpaceBack(t *testing.T) {
	for name, again := range map[string]func(ctx context.Context, h *host) error{
		"of thinsnap":    func(ctx context.Context, h *host) error { return h.open(ctx, filesystems["ext4"]) },
		"of the machine": func(ctx context.Context, h *host) error { return h.reboot(ctx, filesystems["ext4"]) },
	} {
		for _, isRemoved := range []bool{false, true} {
			if isRemoved != strings.HasSuffix(name, "machine") && !dmtest.Thorough() {
				continue
			}
			t.Run(fmt.Sprintf("%s, removed %v", name, isRemoved), func(t *testing.T) {
				const size = 4 << 20
				ctx, h := newTestHost(t, filesystems["ext4"])
				mounts, err := h.Prepare(ctx, "box", "")
				require.NoError(t, err)
				most := h.allocated(t) + size
				var held []*os.File
				mounted(t, mounts, func(dir string) {
					for _, content := range []string{"a", "b", "c"} {
						require.NoError(t, overwrite(filepath.Join(dir, "file"), bytes.Repeat([]byte(content), size)))
						copied, err := h.Freeze(ctx, "box")
						require.NoError(t, err)
						f, err := os.Open(copied.Path) // a stop does not delete an open copy
						require.NoError(t, err)
						held = append(held, f)
					}
				})
				require.Greater(t, h.allocated(t), most+size)
				if isRemoved {
					require.NoError(t, h.Remove(ctx, "box"))
				} else {
					most += size
				}
				require.NoError(t, h.Close())
				for _, f := range held {
					require.NoError(t, f.Close())
				}
				require.NoError(t, again(ctx, h))
				require.NoError(t, h.Cleanup(ctx))
				require.Less(t, h.allocated(t), most)
				if !isRemoved {
					mounts, err = h.Mounts(ctx, "box")
					require.NoError(t, err)
					mounted(t, mounts, func(dir string) { require.Equal(t, strings.Repeat("c", size), read(t, dir, "file")) })
				}
			})
		}
	}
}
