package pool_test

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// newSectorDisk mounts an ext4 on a disk with sectors of 4096 bytes.
func newSectorDisk(t *testing.T) (dir string) {
	t.Helper()
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	file := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, os.Truncate(file, 4<<30))
	disk, err := blockdev.LoopAttach(file, blockdev.LoopOptions{BlockSize: 4096})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, disk.Close()) })
	command(t, "mkfs.ext4", "-q", disk.Path)
	dir = t.TempDir()
	require.NoError(t, unix.Mount(disk.Path, dir, "ext4", 0, ""))
	t.Cleanup(func() { unmountDisk(t, dir) })
	return dir
}

// unmountDisk unmounts a file system with the files of a pool. It retries, because udevd may open a
// loop device during its detachment and so keep the file open.
func unmountDisk(t *testing.T, dir string) {
	t.Helper()
	require.Eventually(t, func() bool { return unix.Unmount(dir, 0) == nil }, time.Minute, 10*time.Millisecond)
}

func sectorBytes(t *testing.T, number string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/sys/dev/block", number, "queue/logical_block_size"))
	require.NoError(t, err)
	return strings.TrimSpace(string(b))
}

// TestSectorsOfAPool: since Linux 6.15 a loop device without an explicit sector size takes that of
// its file's disk. An XFS or small ext4 that was created with another size cannot be mounted then.
func TestSectorsOfAPool(t *testing.T) {
	dir := newSectorDisk(t)
	ctx := t.Context()
	control, err := devmapper.Open()
	require.NoError(t, err)
	defer func() { require.NoError(t, control.Close()) }()
	spec := pool.LoopSpec{
		ID: rand.Text(), Name: "sectors", BlockBytes: 64 << 10,
		DataFile: filepath.Join(dir, "pool/data"), MetadataFile: filepath.Join(dir, "pool/metadata"),
	}
	require.NoError(t, spec.CreateFiles(t.Context(), 2<<30, 8<<20))
	made := spec
	made.SectorBytes = 512 // as every kernel before 6.15 did
	p, err := made.Open(ctx, control, false)
	require.NoError(t, err)
	mkfs := [][]string{{"mkfs.ext4", "-q", "-b", "1024"}, {"mkfs.xfs", "-q", "-s", "size=512"}}
	for i, args := range mkfs {
		id := thin.ID(i + 1)
		require.NoError(t, p.CreateThin(ctx, id))
		vol, err := p.Activate(ctx, id, 512<<20, false)
		require.NoError(t, err)
		command(t, append(args, vol.Path)...)
	}
	require.NoError(t, p.Close(ctx))

	p, err = spec.Open(ctx, control, true) // its record has no sector size
	require.NoError(t, err)
	b := backing(t, p)
	require.Equal(t, []string{"512", "512"}, []string{sectorBytes(t, b.DataDevice), sectorBytes(t, b.MetadataDevice)})
	at := t.TempDir()
	for i, args := range mkfs {
		vol, err := p.Activate(ctx, thin.ID(i+1), 512<<20, false)
		require.NoError(t, err)
		require.NoError(t, unix.Mount(vol.Path, at, strings.TrimPrefix(args[0], "mkfs."), 0, ""))
		require.NoError(t, unix.Unmount(at, 0))
	}
	require.NoError(t, p.Close(ctx))
}

// TestSectorsOfANewPool: direct I/O on a disk with sectors of 4096 bytes requires sectors of that
// size.
func TestSectorsOfANewPool(t *testing.T) {
	dir := newSectorDisk(t)
	ctx := t.Context()
	control, err := devmapper.Open()
	require.NoError(t, err)
	defer func() { require.NoError(t, control.Close()) }()
	spec := pool.LoopSpec{
		ID: rand.Text(), Name: "sectors", BlockBytes: 64 << 10,
		DataFile: filepath.Join(dir, "pool/data"), MetadataFile: filepath.Join(dir, "pool/metadata"),
	}
	require.NoError(t, spec.CreateFiles(t.Context(), 2<<30, 8<<20))
	spec.SectorBytes, err = spec.ChooseSectorBytes()
	require.NoError(t, err)
	require.EqualValues(t, 4096, spec.SectorBytes)
	p, err := spec.Open(ctx, control, false)
	require.NoError(t, err)
	b := backing(t, p)
	for _, number := range []string{b.DataDevice, b.MetadataDevice} {
		require.Equal(t, "4096", sectorBytes(t, number))
		loop, err := blockdev.LoopInfoByNumber(number)
		require.NoError(t, err)
		require.True(t, loop.DirectIO)
	}
	require.NoError(t, p.CreateThin(ctx, 1))
	vol, err := p.Activate(ctx, 1, 64<<20, false)
	require.NoError(t, err)
	require.Equal(t, "4096", sectorBytes(t, vol.Device.Number()))
	command(t, "mkfs.ext4", "-q", vol.Path)
	require.NoError(t, p.Extend(ctx, 3<<30, 16<<20))
	require.NoError(t, p.Close(ctx))
}
