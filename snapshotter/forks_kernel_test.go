package snapshotter_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/dmtest/fsck"
	"github.com/thinsnap/thinsnap/metadata"
)

const (
	recordBytes = 4096
	// recordSlots is the number of records in the files before the first one is overwritten.
	recordSlots = 64
)

// recorder writes numbered records to two files in turn, and syncs each, a hundred times a second.
type recorder struct {
	files  [2]*os.File
	begun  atomic.Uint64 // the latest record with a begun write
	synced atomic.Uint64 // the latest record on stable storage
	end    chan struct{}
	ended  chan error
}

func startRecorder(t *testing.T, dir string) *recorder {
	t.Helper()
	r := &recorder{end: make(chan struct{}), ended: make(chan error, 1)}
	for i := range r.files {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
		require.NoError(t, err)
		_, err = f.Write(make([]byte, recordBytes*recordSlots/2))
		require.NoError(t, err)
		r.files[i] = f
	}
	for range 2 * recordSlots {
		require.NoError(t, r.record())
	}
	go func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if err := r.record(); err != nil {
					r.ended <- err
					return
				}
			case <-r.end:
				r.ended <- nil
				return
			}
		}
	}()
	return r
}

func (r *recorder) record() error {
	n := r.begun.Add(1)
	block := make([]byte, recordBytes)
	for at := 0; at < len(block); at += 8 {
		binary.LittleEndian.PutUint64(block[at:], n)
	}
	f := r.files[n%2]
	if _, err := f.WriteAt(block, int64(n/2%(recordSlots/2))*recordBytes); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	r.synced.Store(n)
	return nil
}

func (r *recorder) stop(t *testing.T) {
	t.Helper()
	close(r.end)
	require.NoError(t, <-r.ended)
	for _, f := range r.files {
		require.NoError(t, f.Close())
	}
}

// requireMoment requires that a file system has all records up to one moment, each of them whole, and
// returns the latest.
func requireMoment(t *testing.T, dir string) (latest uint64) {
	t.Helper()
	found := make(map[uint64]bool)
	for i := range 2 {
		content, err := os.ReadFile(filepath.Join(dir, fmt.Sprint(i)))
		require.NoError(t, err)
		require.Len(t, content, recordBytes*recordSlots/2)
		for block := 0; block < len(content); block += recordBytes {
			n := binary.LittleEndian.Uint64(content[block:])
			for at := 0; at < recordBytes; at += 8 {
				require.Equal(t, n, binary.LittleEndian.Uint64(content[block+at:]), "a record is torn")
			}
			found[n] = true
			latest = max(latest, n)
		}
	}
	for n := latest - recordSlots + 1; n <= latest; n++ {
		require.True(t, found[n], "record %d is missing before %d", n, latest)
	}
	return latest
}

// TestManyForks forks a container, or a virtual machine's disk, during writes. Each fork has the earlier
// synced records and the content of one moment, and costs as much as the first.
func TestManyForks(t *testing.T) {
	forks := 10
	if dmtest.Thorough() {
		forks = 100
	}
	for _, fs := range dmtest.Filesystems() {
		for name, boot := range map[string]func(t *testing.T, disk mount.Mount) (dir string, shutdown func()){
			"container": startContainer, "virtual machine": startGuest,
		} {
			t.Run(name+","+fs, func(t *testing.T) {
				ctx, h := newTestHost(t, filesystems[fs])
				disk, err := h.Prepare(ctx, "source", "")
				require.NoError(t, err)
				dir, shutdown := boot(t, disk[0])
				r := startRecorder(t, dir)
				before := h.control.CallsByCommand()
				moments := make([][2]uint64, forks)
				mounts := make([][]mount.Mount, forks)
				for i := range forks {
					token, err := h.IssueFork(ctx, "source")
					require.NoError(t, err)
					moments[i][0] = r.synced.Load()
					mounts[i], err = h.Prepare(ctx, fmt.Sprint("fork-", i), "", from(token))
					moments[i][1] = r.begun.Load()
					require.NoError(t, err)
				}
				requireCalls(t, before, h.control.CallsByCommand(), uint64(forks))
				for i := range forks {
					sb, err := filesystem.Identify(mounts[i][0].Source)
					require.NoError(t, err)
					require.Equal(t, name == "virtual machine" && fs == filesystem.Ext4, sb.NeedsRecovery)
					mounted(t, mounts[i], func(dir string) {
						latest := requireMoment(t, dir)
						require.GreaterOrEqual(t, latest, moments[i][0], "records synced before the fork")
						require.LessOrEqual(t, latest, moments[i][1], "records written after the fork")
						write(t, dir, "file", "of the fork")
					})
					require.NoError(t, fsck.Device(ctx, mounts[i][0].Source, fs))
				}
				r.stop(t)
				requireMoment(t, dir)
				require.NoFileExists(t, filepath.Join(dir, "file"), "the source has nothing of the forks")
				shutdown()
				for i := range forks {
					require.NoError(t, h.Remove(ctx, fmt.Sprint("fork-", i)))
				}
				require.NoError(t, h.Cleanup(ctx))
				volumes, err := h.pool.Volumes(ctx, 1, metadata.MaxDevice)
				require.NoError(t, err)
				require.Len(t, volumes, 2, "the base volume and the source")
			})
		}
	}
}

func startContainer(t *testing.T, disk mount.Mount) (dir string, shutdown func()) {
	t.Helper()
	dir = t.TempDir()
	require.NoError(t, disk.Mount(dir))
	return dir, func() { require.NoError(t, unix.Unmount(dir, 0)) }
}

// startGuest opens a snapshot's device and mounts its file system, as the kernel of a virtual machine does.
func startGuest(t *testing.T, disk mount.Mount) (dir string, shutdown func()) {
	t.Helper()
	loop, err := mount.SetupLoop(disk.Source, mount.LoopParams{Autoclear: true})
	require.NoError(t, err)
	defer loop.Close()
	disk.Source = loop.Name()
	return startContainer(t, disk)
}

// requireCalls requires that forks make no unnecessary calls to the kernel.
func requireCalls(t *testing.T, before, after map[string]uint64, forks uint64) {
	t.Helper()
	// Background work reads the pool's status too.
	const background = 20
	for command, most := range map[string]uint64{
		"create": forks, "load": forks, "suspend": forks, "remove": 0,
		"resume": 2 * forks, // of the source and of the fork
		// The snapshot and the stamp, each a commit of the pool, and the stamps of leases of 16 ids.
		"message": 2*forks + forks/16 + 2,
		"info":    forks + background, "status": 4*forks + background, "table": background, "list": background,
	} {
		require.LessOrEqual(t, after[command]-before[command], most, "%s, for %d forks", command, forks)
	}
}

// TestForkCommitsThePool: a fork commits the pool once more than a Prepare, for the stamp.
func TestForkCommitsThePool(t *testing.T) {
	ctx, h := newTestHost(t, filesystems[filesystem.Ext4])
	backing, err := h.pool.Backing()
	require.NoError(t, err)
	const (
		each, leases = 32, 4 // leases taken meanwhile
		flushField   = 15    // in a device's statistics
	)
	cost := func(name string, prepare func(key string) error) uint64 {
		require.NoError(t, prepare(name))
		before := statistics(t, backing.MetadataPath)[flushField]
		for i := range each {
			require.NoError(t, prepare(fmt.Sprint(name, "-", i)))
		}
		return statistics(t, backing.MetadataPath)[flushField] - before
	}
	prepares := cost("prepared", func(key string) error {
		_, err := h.Prepare(ctx, key, "")
		return err
	})
	forks := cost("fork", func(key string) error {
		token, err := h.IssueFork(ctx, "prepared")
		if err == nil {
			_, err = h.Prepare(ctx, key, "", from(token))
		}
		return err
	})
	perCommit := prepares / each
	require.Positive(t, perCommit, "a commit flushes the metadata")
	require.LessOrEqual(t, forks, (2*each+leases)*perCommit)
}
