package blockdev

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/internal/dmtest"
)

const (
	mib        = 1 << 20
	eventually = 5 * time.Second
	tick       = 10 * time.Millisecond
)

func sparse(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	f, err := os.Create(path)
	require.NoError(t, err)
	require.NoError(t, errors.Join(f.Truncate(size), f.Close()))
	return path
}

// requireDetached waits until the kernel has closed the file.
func requireDetached(t *testing.T, dev, file string) {
	t.Helper()
	require.Eventually(t, func() bool {
		state, err := LoopInfo(dev)
		return errors.Is(err, unix.ENXIO) || err == nil && state.BackingFile != file
	}, eventually, tick)
}

func TestKernelLoop(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	path := sparse(t, 16*mib)
	l, err := LoopAttach(path, LoopOptions{BlockSize: 4096})
	require.NoError(t, err)
	require.Equal(t, uint32(7), l.Major)

	state, err := LoopInfo(l.Path)
	require.NoError(t, err)
	require.Equal(t, l.Path, state.Path)
	require.Equal(t, path, state.BackingFile)
	require.True(t, state.AutoClear)
	require.False(t, state.ReadOnly || state.DirectIO)
	fi, err := os.Stat(path)
	require.NoError(t, err)
	require.True(t, state.SameFile(fi))
	other, err := os.Stat(t.TempDir())
	require.NoError(t, err)
	require.False(t, state.SameFile(other))
	byNumber, err := LoopInfoByNumber(l.Number())
	require.NoError(t, err)
	require.Equal(t, state, byNumber)

	size, err := Size(l.Path)
	require.NoError(t, err)
	require.Equal(t, uint64(16*mib), size)
	require.NoError(t, os.Truncate(path, 32*mib))
	require.NoError(t, LoopSetCapacity(l.Path))
	size, err = Size(l.Path)
	require.NoError(t, err)
	require.Equal(t, uint64(32*mib), size)
	require.NoError(t, Flush(l.Path))

	require.NoError(t, l.Close())
	requireDetached(t, l.Path, path)
}

func TestKernelLoopReadOnly(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	path := sparse(t, mib)
	l, err := LoopAttach(path, LoopOptions{ReadOnly: true})
	require.NoError(t, err)
	defer func() { require.NoError(t, l.Close()) }()
	state, err := LoopInfo(l.Path)
	require.NoError(t, err)
	require.True(t, state.ReadOnly)
	// A read-only loop device may be opened for writing, but not written to.
	f, err := os.OpenFile(l.Path, os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.Write(make([]byte, 4096))
	require.ErrorIs(t, err, unix.EPERM)
	require.NoError(t, f.Close())
}

// TestKernelLoopDirectIO uses a file system with direct I/O; the other tests run on a tmpfs, which
// has none before Linux 6.6.
func TestKernelLoopDirectIO(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	below, err := LoopAttach(sparse(t, 64*mib), LoopOptions{})
	require.NoError(t, err)
	defer func() { require.NoError(t, below.Close()) }()
	out, err := exec.CommandContext(t.Context(), "mkfs.ext4", "-q", below.Path).CombinedOutput()
	require.NoError(t, err, string(out))
	dir := t.TempDir()
	require.NoError(t, unix.Mount(below.Path, dir, "ext4", 0, ""))
	defer func() { require.NoError(t, unix.Unmount(dir, 0)) }()
	path := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(path, make([]byte, mib), 0o600))

	l, err := LoopAttach(path, LoopOptions{DirectIO: true})
	require.NoError(t, err)
	require.True(t, l.DirectIO)
	require.NoError(t, l.Close())
	requireDetached(t, l.Path, path)
}

func TestKernelLoopRace(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	path := sparse(t, mib)
	const workers = 8
	loops := make([]*Loop, workers)
	var all sync.WaitGroup
	for i := range loops {
		all.Go(func() {
			l, err := LoopAttach(path, LoopOptions{})
			if err != nil {
				t.Error(err)
				return
			}
			loops[i] = l
		})
	}
	all.Wait()
	seen := make(map[string]bool)
	for _, l := range loops {
		require.NotNil(t, l)
		require.False(t, seen[l.Path], "%s was attached twice", l.Path)
		seen[l.Path] = true
		require.NoError(t, l.Close())
	}
}

// TestKernelLoopDetach detaches a loop device that is not open, as losetup leaves it.
func TestKernelLoopDetach(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	path := sparse(t, mib)
	l, err := LoopAttach(path, LoopOptions{})
	require.NoError(t, err)
	f, err := os.Open(l.Path)
	require.NoError(t, err)
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	require.NoError(t, err)
	info.Flags &^= unix.LO_FLAGS_AUTOCLEAR
	require.NoError(t, unix.IoctlLoopSetStatus64(int(f.Fd()), info))
	require.NoError(t, errors.Join(f.Close(), l.Close()))
	state, err := LoopInfo(l.Path)
	require.NoError(t, err)
	require.False(t, state.AutoClear)

	earlier := state
	earlier.Inode++
	require.NoError(t, LoopDetach(earlier))
	after, err := LoopInfo(l.Path)
	require.NoError(t, err)
	require.Equal(t, state, after, "it belongs to another file, and stays attached")

	require.NoError(t, LoopDetach(state))
	requireDetached(t, l.Path, path)
	require.NoError(t, LoopDetach(state), "already detached")
	require.NoError(t, LoopDetach(LoopState{Path: "/dev/loop1048575"}))
}

func TestKernelLoopErrors(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	_, err := LoopAttach(filepath.Join(t.TempDir(), "none"), LoopOptions{})
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = LoopAttach(sparse(t, mib), LoopOptions{BlockSize: 1000})
	require.ErrorIs(t, err, unix.EINVAL)
	_, err = LoopInfoByNumber("7:1048575")
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestKernelDiscardLoop(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	path := sparse(t, 8*mib)
	l, err := LoopAttach(path, LoopOptions{})
	require.NoError(t, err)
	defer func() { require.NoError(t, l.Close()) }()
	f, err := os.OpenFile(l.Path, os.O_RDWR, 0)
	require.NoError(t, err)
	data := make([]byte, 8*mib)
	for i := range data {
		data[i] = 1
	}
	_, err = f.Write(data)
	require.NoError(t, err)
	require.NoError(t, f.Sync())
	var st unix.Stat_t
	require.NoError(t, unix.Stat(path, &st))
	require.GreaterOrEqual(t, st.Blocks*512, int64(8*mib))

	require.NoError(t, Discard(t.Context(), f, 4*mib, 4*mib, 512, nil))

	require.NoError(t, unix.Stat(path, &st))
	require.LessOrEqual(t, st.Blocks*512, int64(5*mib))
	require.ErrorIs(t, Discard(t.Context(), f, 100, 512, 512, nil), unix.EINVAL, "not a multiple of 512")
	require.NoError(t, f.Close())
}
