package snapshotter_test

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	"github.com/containerd/continuity/fs/fstest"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// An idmapped container's files are committed with the owners that the container sees, and nothing else
// changes. The test uses containerd's own differ, with read-only and writable mounts of both sides.
func TestDiffOfAnIDMappedContainer(t *testing.T) {
	for name, config := range filesystems {
		t.Run(name, func(t *testing.T) {
			ctx, h := newTestHost(t, config)
			// containerd's code leaves the closing of the namespace process's file to Go's garbage collector.
			t.Cleanup(runtime.GC)
			require.NoError(t, prepareAndCommit(t, h, "layer", "", fstest.CreateFile("/old", nil, 0o644), fstest.Chown("/old", 7, 8)))
			mapping := labels(snapshots.LabelSnapshotUIDMapping, "0:100000:65536", snapshots.LabelSnapshotGIDMapping, "0:200000:65536")
			mounts, err := h.Prepare(ctx, "box", "layer", mapping)
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, h.Cleanup(context.WithoutCancel(ctx))) })
			store, err := local.NewLabeledStore(t.TempDir(), contentLabels{})
			require.NoError(t, err)
			differ := walking.NewWalkingDiff(store)
			var layer ocispec.Descriptor
			// thinsnap's own mount from an earlier start does not prevent the mapping of a later one.
			for start := range 2 {
				mounted(t, mounts, func(dir string) {
					require.Equal(t, "100007:200008", owners(t, dir, "old"), "start %d", start)
					createAsRootOfTheContainer(t, dir, fmt.Sprint("new", start))
					require.NoError(t, os.Chown(filepath.Join(dir, fmt.Sprint("new", start)), 100005, 200006))
					layer, err = rootfs.CreateDiff(ctx, "box", h, differ, diff.WithMediaType(ocispec.MediaTypeImageLayer))
					require.NoError(t, err)
					require.Equal(t, []string{"new0 5:6", "new1 5:6"}[:start+1], entries(ctx, t, store, layer))

					shared, err := h.Mounts(ctx, "box")
					require.NoError(t, err)
					require.Equal(t, "bind", shared[0].Type)
					mounted(t, shared, func(dir string) { require.Equal(t, "7:8", owners(t, dir, "old"), "as on the disk") })
				})
				mounts, err = h.Mounts(ctx, "box")
				require.NoError(t, err)
			}
			require.NoError(t, h.Remove(ctx, "box"))

			target, err := h.Prepare(ctx, "image", "layer")
			require.NoError(t, err)
			_, err = apply.NewFileSystemApplier(store).Apply(ctx, layer, target)
			require.NoError(t, err)
			require.NoError(t, h.Commit(ctx, "committed", "image"))
			view, err := h.View(ctx, "view", "committed")
			require.NoError(t, err)
			mounted(t, view, func(dir string) {
				require.Equal(t, "7:8", owners(t, dir, "old"))
				require.Equal(t, "5:6", owners(t, dir, "new1"))
			})
			again, err := h.Prepare(ctx, "again", "committed", mapping)
			require.NoError(t, err)
			mounted(t, again, func(dir string) { require.Equal(t, "100005:200006", owners(t, dir, "new1")) })
		})
	}
}

// For a snapshot that is mounted read-only, a client that needs an idmapped mount gets the device.
func TestIDMappedContainerIsMountedReadOnly(t *testing.T) {
	ctx, h := newTestHost(t, filesystems["ext4"])
	t.Cleanup(runtime.GC)
	mounts, err := h.Prepare(ctx, "box", "", labels(
		snapshots.LabelSnapshotUIDMapping, "0:100000:65536", snapshots.LabelSnapshotGIDMapping, "0:200000:65536"))
	require.NoError(t, err)
	mounted(t, with(mounts, "ro"), func(string) {
		again, err := h.Mounts(ctx, "box")
		require.NoError(t, err)
		require.NoError(t, mount.WithReadonlyTempMount(ctx, again, func(dir string) error {
			require.Equal(t, "0:0", owners(t, dir, "."), "as on the disk")
			return nil
		}))
	})
	require.NoError(t, h.Remove(ctx, "box"))
}

func createAsRootOfTheContainer(t *testing.T, dir, name string) {
	t.Helper()
	at, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(at)
	require.NoError(t, onThread(func() error {
		if err := errors.Join(unix.Setfsuid(100000), unix.Setfsgid(200000)); err != nil {
			return err
		}
		file, err := unix.Openat(at, name, unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		return unix.Close(file)
	}))
}

type contentLabels map[digest.Digest]map[string]string

func (c contentLabels) Get(d digest.Digest) (map[string]string, error) { return c[d], nil }

func (c contentLabels) Set(d digest.Digest, labels map[string]string) error {
	c[d] = labels
	return nil
}

func (c contentLabels) Update(d digest.Digest, update map[string]string) (map[string]string, error) {
	return update, c.Set(d, update)
}

func owners(t *testing.T, dir, name string) string {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(filepath.Join(dir, name), &st))
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}

// entries returns the names and owners in a layer, without the root directory.
func entries(ctx context.Context, t *testing.T, store content.Store, layer ocispec.Descriptor) (names []string) {
	t.Helper()
	r, err := store.ReaderAt(ctx, layer)
	require.NoError(t, err)
	defer r.Close()
	archive := tar.NewReader(content.NewReader(r))
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return names
		}
		require.NoError(t, err)
		if header.Name != "./" && header.Name != "/" {
			names = append(names, fmt.Sprintf("%s %d:%d", header.Name, header.Uid, header.Gid))
		}
	}
}
