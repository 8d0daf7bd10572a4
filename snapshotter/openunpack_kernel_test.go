package snapshotter_test

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestCommitOfAnUnpackThatIsOpen: a process such as a scanner has an unpack's device open, and nothing has
// it mounted. A cleanly unmounted file system is committed. One that has shut down, which only its log
// shows, is Unavailable, because it may be about to be mounted. After the close it is DataLoss.
func TestCommitOfAnUnpackThatIsOpen(t *testing.T) {
	configs := maps.Clone(filesystems)
	withJournal := configs["ext4"]
	withJournal.MountOptions = []string{"data=ordered"}
	configs["ext4 with a journal"] = withJournal
	for _, name := range slices.Sorted(maps.Keys(configs)) {
		for _, isShutDown := range []bool{false, true} {
			if name == "ext4" && isShutDown {
				continue // without its journal, it looks as if it was mounted
			}
			t.Run(fmt.Sprintf("%s, shut down: %v", name, isShutDown), func(t *testing.T) {
				ctx, h := newTestHost(t, configs[name])
				mounts, err := h.Prepare(ctx, unpackKey, "")
				require.NoError(t, err)
				mounted(t, mounts, func(dir string) {
					write(t, dir, "file", "content")
					root, err := os.Open(dir)
					require.NoError(t, err)
					defer root.Close()
					require.NoError(t, unix.Syncfs(int(root.Fd())))
					write(t, dir, "last", "content of the last file")
					if isShutDown {
						require.NoError(t, unix.IoctlSetPointerInt(int(root.Fd()), goingDown, logLost))
					}
				})
				scanner, err := os.Open(mounts[0].Source)
				require.NoError(t, err)
				err = h.Commit(ctx, "layer", unpackKey)
				require.NoError(t, scanner.Close())
				if isShutDown {
					requireFault(t, err, errdefs.ErrUnavailable, unpackKey, "fuser -v "+mounts[0].Source)
					for range 2 {
						requireFault(t, h.Commit(ctx, "layer", unpackKey), errdefs.ErrDataLoss, unpackKey, "pull or build it again")
					}
					return
				}
				require.NoError(t, err)
				view, err := h.View(ctx, "view", "layer")
				require.NoError(t, err)
				mounted(t, view, func(dir string) { require.Equal(t, "content of the last file", read(t, dir, "last")) })
			})
		}
	}
}

// TestCommitOfAnOpenXFSThatCouldNotWrite: if no write to an xfs's log succeeded between mount and unmount,
// the volume and its copies look like a new xfs.
func TestCommitOfAnOpenXFSThatCouldNotWrite(t *testing.T) {
	ctx, h := newTestHost(t, filesystems["xfs"])
	mounts, err := h.Prepare(ctx, unpackKey, "")
	require.NoError(t, err)
	scanner, err := os.Open(mounts[0].Source)
	require.NoError(t, err)
	err = h.Commit(ctx, "layer", unpackKey)
	require.NoError(t, scanner.Close())
	requireFault(t, err, errdefs.ErrUnavailable, unpackKey, "fuser -v "+mounts[0].Source)
}
