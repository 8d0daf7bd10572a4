package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/check"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/dmtest/faulty"
	"github.com/thinsnap/thinsnap/internal/rootdir"
	"github.com/thinsnap/thinsnap/metadata"
)

const (
	// smallDisk is the size of the root's disk.
	smallDisk = 448 << 20
	// neighbours are files of neighbourBytes on the disk that others wrote before.
	neighbours, neighbourBytes = 6, 24 << 20
	// ballastBytes is the size of a layer whose removal unblocks a full pool.
	ballastBytes = 48 << 20
	// fullDiskWait only ends a hang.
	fullDiskWait = 2 * time.Minute
)

// fullDiskKind is a kind of pool on a disk that others fill.
type fullDiskKind string

const (
	// growing uses all of the disk except the reserve.
	growing fullDiskKind = "growing"
	// limited leaves most of the disk to others, so discards punch holes in its file.
	limited fullDiskKind = "limited"
	// old promised all of a sparse file, as earlier versions did.
	old fullDiskKind = "old"
)

// sharedDisk is a daemon whose root is on a small disk that others fill.
type sharedDisk struct {
	*Daemon
	config config.Config
	dir    string // the disk's directory
	kind   fullDiskKind
	fillers,
	images int
	// base is the used space of the pool without snapshots.
	base uint64
}

// openOnSmallDisk opens a root on its own small disk.
func openOnSmallDisk(t *testing.T, filesystem string, kind fullDiskKind) *sharedDisk {
	t.Helper()
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	disk := faulty.New(t, smallDisk)
	s := &sharedDisk{config: config.Default(), kind: kind}
	if filesystem == "xfs" {
		s.dir = disk.MountXFS(t)
	} else {
		s.dir = disk.Mount(t, true)
	}
	c := &s.config
	c.Root, c.Pool.Name = filepath.Join(s.dir, "root"), "fulldisk"
	c.Pool.Loop.MetadataSize = 8 << 20
	c.Filesystem.BaseSize = 1 << 30
	c.Pool.SparesMax = 0
	switch kind {
	case growing:
		for i := range neighbours {
			require.NoError(t, os.WriteFile(s.neighbour(i), make([]byte, neighbourBytes), 0o600))
		}
	case limited:
		c.Pool.Loop.DataSize = 160 << 20
	case old:
		makeOldPool(t, *c)
	}
	var err error
	s.Daemon, err = Open(t.Context(), *c)
	require.NoError(t, err)
	t.Cleanup(func() { destroy(t, *c) })
	t.Cleanup(func() { _ = s.Close() })
	s.base = s.used(t)
	return s
}

// makeOldPool writes the store's record and the two sparse files that earlier versions made by
// default.
func makeOldPool(t *testing.T, c config.Config) {
	t.Helper()
	files := metadata.LoopFiles{DataFile: filepath.Join(c.Root, "pool/data"), MetadataFile: filepath.Join(c.Root, "pool/metadata")}
	require.NoError(t, os.MkdirAll(filepath.Dir(files.DataFile), 0o700))
	require.NoError(t, os.Chmod(c.Root, 0o700))
	for file, size := range map[string]int64{files.DataFile: 100 << 30, files.MetadataFile: 64 << 20} {
		require.NoError(t, os.WriteFile(file, nil, 0o600))
		require.NoError(t, os.Truncate(file, size))
	}
	store, err := metadata.Open(rootdir.Store(c.Root), metadata.Options{})
	require.NoError(t, err)
	require.NoError(t, store.Update(t.Context(), func(tx *metadata.Tx) error {
		return tx.SetPool(metadata.PoolRecord{
			ID: "old", Mode: metadata.ModeLoop, Name: c.Pool.Name, BlockSize: uint64(c.Pool.BlockSize), Loop: files,
		})
	}))
	require.NoError(t, store.Close())
}

// used is the pool's used space after a commit.
func (s *sharedDisk) used(t *testing.T) uint64 {
	t.Helper()
	require.NoError(t, s.pool.Commit(t.Context()))
	return s.status(t).Data.Used
}

// mountOn mounts a snapshot with online discard.
func mountOn(t *testing.T, mounts []mount.Mount) (dir string) {
	t.Helper()
	dir = t.TempDir()
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	remountOn(t, mounts, dir)
	return dir
}

func remountOn(t *testing.T, mounts []mount.Mount, dir string) {
	t.Helper()
	for i := range mounts {
		mounts[i].Options = append(mounts[i].Options, "discard")
	}
	require.NoError(t, mount.All(mounts, dir))
}

// status returns the pool's status, and requires the invariant that the pool is writable.
func (s *sharedDisk) status(t *testing.T) pool.Status {
	t.Helper()
	status, err := s.pool.Status(context.Background())
	require.NoError(t, err)
	require.Contains(t, []thin.Mode{thin.ModeReadWrite, thin.ModeOutOfDataSpace}, status.Mode, status.String())
	require.False(t, status.NeedsCheck, status.String())
	return status
}

func (s *sharedDisk) await(t *testing.T, what string, is func(pool.Status) bool) {
	t.Helper()
	require.Eventually(t, func() bool { return is(s.status(t)) }, fullDiskWait, 20*time.Millisecond, what)
}

func (s *sharedDisk) free(t *testing.T) int64 {
	t.Helper()
	var fs unix.Statfs_t
	require.NoError(t, unix.Statfs(s.dir, &fs))
	return int64(fs.Bavail) * fs.Bsize
}

// fill has others use the disk, except the space that leave returns. With byWriting they take it in
// pieces, otherwise at once.
func (s *sharedDisk) fill(t *testing.T, byWriting bool, leave func() int64) {
	t.Helper()
	if s.free(t)-leave() < 4096 {
		return
	}
	s.fillers++
	f, err := os.Create(filepath.Join(s.dir, "filler-"+strconv.Itoa(s.fillers)))
	if errors.Is(err, unix.ENOSPC) {
		return
	}
	require.NoError(t, err)
	defer f.Close()
	piece := int64(smallDisk)
	if byWriting {
		piece = 4 << 20
	}
	for at := int64(0); piece >= 4096; {
		n := min(piece, s.free(t)-leave()) &^ 4095
		if n <= 0 {
			return
		}
		if byWriting {
			_, err = f.WriteAt(make([]byte, n), at)
			err = errors.Join(err, f.Sync())
		} else {
			err = unix.Fallocate(int(f.Fd()), 0, at, n)
		}
		if err == nil && !byWriting {
			return
		}
		if err == nil {
			at += n
		} else {
			require.ErrorIs(t, err, unix.ENOSPC)
			piece = n - max(n/8, 4096)
		}
	}
}

func (s *sharedDisk) neighbour(i int) string {
	return filepath.Join(s.dir, "neighbour-"+strconv.Itoa(i))
}

// unfill frees the others' space.
func (s *sharedDisk) unfill(t *testing.T) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(s.dir, "filler-*"))
	require.NoError(t, err)
	for _, file := range files {
		require.NoError(t, os.Remove(file))
	}
}

// fillUp has others fill the disk. They fill the rest only once the pool has allocated what it
// promises: filling faster than that is not supported.
func (s *sharedDisk) fillUp(t *testing.T, byWriting bool) {
	t.Helper()
	if s.kind != old {
		const reserve, short = smallDisk / 10, smallDisk / 20
		if s.free(t) >= 2*reserve {
			// The pool must find the free space before it is filled.
			s.await(t, "discards are passed down", func(status pool.Status) bool { return status.Discard == thin.DiscardPassdown })
		}
		s.await(t, "freed space is allocated again", func(status pool.Status) bool {
			// XFS frees the space that it preallocated for a writer.
			s.fill(t, byWriting, func() int64 { return int64(s.status(t).Data.Holes) + short })
			return status.Discard == thin.DiscardNoPassdown && status.Data.Holes == 0
		})
	}
	s.fill(t, byWriting, func() int64 { return 0 })
	// The remainder that the file system had held back.
	s.fill(t, true, func() int64 { return 0 })
}

// tolerate drops errors that a client can meet on a full disk and may retry.
func tolerate(err error) error {
	if errdefs.IsResourceExhausted(err) || errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// writeUntil writes a file until the pool is out of data space, and one MiB more.
func writeUntil(file string, full <-chan struct{}) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	for piece := make([]byte, 1<<20); ; {
		if _, err := f.Write(piece); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
		select {
		case <-full:
			return nil
		default:
		}
	}
}

// requireNoFailure requires that no write failed, except by a race in the kernel (at least up to
// Linux 7.2). If blocks are freed while the worker of a full pool processes a write, that write
// fails.
func (s *sharedDisk) requireNoFailure(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	messages := make([]byte, 1<<20)
	n, logErr := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, messages)
	require.NoError(t, logErr)
	require.Contains(t, string(messages[:n]), "bio unserviceable, yet pool is in PM_WRITE mode", "no write fails: %v", err)
	t.Log("the kernel's race: ", err)
}

// cycle has others fill the disk and free it again, while containers write and images come and go.
// A short cycle ends before the kernel's timeout, after which it fails writes to a full pool.
func (s *sharedDisk) cycle(t *testing.T, i int, boxes []*box, short, byWriting bool) {
	t.Helper()
	timeout := "60"
	if !short {
		timeout = "1"
	}
	require.NoError(t, os.WriteFile(noSpaceTimeout, []byte(timeout), 0o600))
	key := "hog-" + strconv.Itoa(i)
	mounts, err := s.snapshotter.Prepare(t.Context(), key, "")
	require.NoError(t, err)
	dir := mountOn(t, mounts)
	require.NoError(t, s.makeImage(t.Context(), t.TempDir(), "ballast", ballastBytes))
	full, stop := make(chan struct{}), make(chan struct{})
	written, pulled := make(chan error, 1), make(chan error, 1)
	images := t.TempDir()
	for _, b := range boxes {
		b.start()
	}
	go func() { pulled <- s.pull(context.WithoutCancel(t.Context()), images, stop, !short || s.kind == old) }()

	s.fillUp(t, byWriting)
	go func() { written <- writeUntil(filepath.Join(dir, "file"), full) }()
	if s.kind != old {
		// Removed images free blocks, so the pool may be full or fail writes only for a moment.
		ended := func() bool { return len(written) > 0 }
		s.await(t, "the pool is full", func(status pool.Status) bool { return ended() || status.Mode == thin.ModeOutOfDataSpace })
		if !short {
			s.await(t, "writes fail", func(status pool.Status) bool { return ended() || !status.QueueIfNoSpace })
		}
	}
	if s.kind == old || !short {
		require.Error(t, <-written)
	}
	close(full)
	s.unfill(t)
	healthy := func(status pool.Status) bool { return status.Mode == thin.ModeReadWrite && status.QueueIfNoSpace }
	if err := os.Remove(s.neighbour(i)); err == nil {
		before := s.status(t).Data.Total
		s.await(t, "the pool grows", func(status pool.Status) bool { return healthy(status) && status.Data.Total > before })
	}
	// A pool that may not grow gets space from removals.
	require.Eventually(t, func() bool { return s.snapshotter.Remove(t.Context(), "ballast") == nil },
		fullDiskWait, 20*time.Millisecond)
	require.NoError(t, s.snapshotter.Cleanup(t.Context()))
	s.await(t, "the pool has space again", healthy)
	if short && s.kind != old {
		s.requireNoFailure(t, <-written)
	}
	close(stop)
	require.NoError(t, <-pulled)
	for _, b := range boxes {
		if err := b.halt(); short && s.kind != old {
			s.requireNoFailure(t, err)
		}
	}
	require.NoError(t, mount.UnmountAll(dir, 0))
	require.NoError(t, s.snapshotter.Remove(t.Context(), key))
	require.NoError(t, s.snapshotter.Cleanup(t.Context()))
	for _, b := range boxes {
		b.verify(t)
	}
}

const noSpaceTimeout = "/sys/module/dm_thin_pool/parameters/no_space_timeout"

// fullDiskCycles runs cycles on a small disk, and checks the final state.
func fullDiskCycles(t *testing.T, filesystem string, kind fullDiskKind, cycles int) {
	t.Helper()
	s := openOnSmallDisk(t, filesystem, kind)
	before, err := os.ReadFile(noSpaceTimeout)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.WriteFile(noSpaceTimeout, before, 0o600)) })
	var boxes []*box
	for i := range 2 {
		boxes = append(boxes, s.newBox(t, fmt.Sprint("box-", i)))
	}
	for i := range cycles {
		s.cycle(t, i, boxes, i%2 == 0, i/2%2 == 0)
		t.Log("cycle", i, s.status(t).String())
	}
	for _, b := range boxes {
		b.remove(t)
	}
	ctx := t.Context()
	require.NoError(t, s.snapshotter.Walk(ctx, func(ctx context.Context, info snapshots.Info) error {
		return s.snapshotter.Remove(ctx, info.Name)
	}))
	require.NoError(t, s.snapshotter.Cleanup(ctx))
	if used := s.used(t); kind != old {
		require.Equal(t, s.base, used, "leaked blocks")
	}
	found, err := s.Check(ctx, false)
	require.NoError(t, err)
	for _, finding := range found.Findings {
		// Failed writes have leaked blocks of an old pool, and it promises more than the disk has.
		require.Equal(t, old, kind, finding.Text)
		require.Contains(t, []check.Kind{check.KindBlocks, check.KindSpace}, finding.Kind, finding.Text)
	}
	require.NoError(t, s.Close())
	report, err := CheckPool(ctx, s.config)
	require.NoError(t, err)
	require.False(t, report.NeedsCheck)
	require.False(t, report.Damaged(), report)
}

// TestFullDisk: the pool survives a disk that others fill and free again, without help and without
// loss. It runs two cycles of a growing pool and one of an old one on ext4, or THINSNAP_CYCLES
// cycles of all kinds on each file system.
func TestFullDisk(t *testing.T) {
	all := []fullDiskKind{growing, limited, old}
	cycles, filesystems := map[fullDiskKind]int{growing: 2, old: 1}, []string{"ext4"}
	if text := os.Getenv("THINSNAP_CYCLES"); text != "" {
		n, err := strconv.Atoi(text)
		require.NoError(t, err)
		cycles, filesystems = map[fullDiskKind]int{growing: n, limited: n, old: n}, []string{"ext4", "xfs"}
	}
	for _, filesystem := range filesystems {
		for _, kind := range all {
			if n := cycles[kind]; n > 0 {
				t.Run(filesystem+" "+string(kind), func(t *testing.T) { fullDiskCycles(t, filesystem, kind, n) })
			}
		}
	}
}
