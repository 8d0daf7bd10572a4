package failpoint

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
	"github.com/thinsnap/thinsnap/internal/check"
)

// poolOperations are operations with an older store, a missing pool or a full disk, and a stop before a reboot.
func poolOperations() []operation {
	none := harness.Options{NoSpares: true}
	return []operation{
		{
			name: "start on an older store", options: none, starts: true,
			only:  []string{"beforeKeep", "afterKeep"},
			finds: []check.Kind{check.KindKept},
			setup: olderStore,
			do:    start,
			holds: func(r *trial) {
				kept, err := r.Admin().Leftovers(r.Context())
				require.NoError(r, err)
				require.Len(r, kept, 1)
				r.requireLostFiles()
			},
		}, {
			name: "remove a leftover", options: none,
			finds: []check.Kind{check.KindKept},
			setup: func(r *trial) {
				olderStore(r)
				require.NoError(r, start(r))
			},
			do: func(r *trial) error {
				if err := r.removeLeftovers(); err != nil {
					return err
				}
				return r.cleanup()
			},
			holds: func(r *trial) {
				kept, err := r.Admin().Leftovers(r.Context())
				require.NoError(r, err)
				require.Empty(r, kept)
			},
		}, {
			name: "bring the pool back", options: none,
			do: func(r *trial) error {
				r.takePoolOut()
				return r.prepare(r.key("a"), layer)
			},
			holds: func(r *trial) { r.requireFiles(r.key("a"), first) },
		}, {
			// Nearly half of the disk stays free, so that the pool passes discards down.
			name: "fill the disk", disk: 448 << 20,
			options: harness.Options{NoSpares: true, DataSize: "160MiB", MetadataSize: "8MiB"},
			// For a crash before the holes are allocated again.
			finds: []check.Kind{check.KindSpace},
			setup: active,
			do: func(r *trial) error {
				if err := r.fillDisk(); err != nil {
					return err
				}
				return r.awaitPassdown(false)
			},
			holds: func(r *trial) {
				requireActive(r)
				require.NoError(r, os.RemoveAll(r.ballast()))
				require.NoError(r, r.awaitPassdown(true))
			},
		}, {
			name: "stop before a reboot", options: none,
			only: []string{"beforeCheckpoint", "afterSuspendToCheckpoint", "afterSnapshotToCheckpoint", "afterResumeToCheckpoint"},
			setup: func(r *trial) {
				require.NoError(r, r.prepare(toUnpack(r), layer))
				r.write(toUnpack(r))
			},
			do: func(r *trial) error { return r.Process.Stop() }, // a killed stop promises nothing
			holds: func(r *trial) {
				if _, err := r.stat(r.key("c")); errdefs.IsNotFound(err) {
					r.rebooted(toUnpack(r))
					require.NoError(r, r.commit(r.key("c"), toUnpack(r)))
				}
				r.requireLayerFiles(r.key("c"), first, toUnpack(r))
			},
		},
	}
}

// olderStore stops the daemon, and restores an older copy of the store, which lacks a snapshot that was written to.
func olderStore(r *trial) {
	r.Helper()
	r.Kill()
	r.revive()
	// This takes a lease of ids: a store that is older than the lease would be refused.
	require.NoError(r, r.prepare(r.key("known"), layer))
	r.awaitIdle()
	file := filepath.Join(r.Root, "metadata.db")
	older, err := os.ReadFile(file)
	require.NoError(r, err)
	active(r)
	r.lost = r.deviceOf(r.key("a"))
	r.Kill()
	require.NoError(r, os.WriteFile(file, older, 0o600))
}

// requireLostFiles is requireFiles for the snapshot that an older store lacks.
func (r *trial) requireLostFiles() {
	r.Helper()
	r.control(func(c *devmapper.Control) error {
		_, err := c.Activate(r.lost.device.Name, r.lost.device.UUID, r.lost.targets, true)
		return err
	})
	r.requireDeviceFiles(devmapper.NodePath(r.lost.device.Name), first, r.key("a"))
	r.control(func(c *devmapper.Control) error { return c.Deactivate(r.lost.device.Name) })
}

// removeLeftovers removes the volumes that the daemon keeps because its store is older than the pool.
func (r *trial) removeLeftovers() error {
	kept, err := r.Admin().Leftovers(r.Context())
	for _, leftover := range kept {
		if err == nil {
			_, err = r.Admin().RemoveLeftover(r.Context(), leftover.DeviceID)
		}
	}
	return err
}

// ballast is a file that does not belong to thinsnap, on the root's disk.
func (r *trial) ballast() string { return filepath.Join(filepath.Dir(r.Root), "ballast") }

// fillDisk fills the disk with ballast, except for a fortieth of it.
func (r *trial) fillDisk() error {
	if err := os.RemoveAll(r.ballast()); err != nil {
		return err
	}
	f, err := os.Create(r.ballast())
	if err != nil {
		return err
	}
	defer f.Close()
	var disk unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &disk); err != nil {
		return err
	}
	return unix.Fallocate(int(f.Fd()), 0, 0, int64(disk.Bavail-disk.Blocks/40)*disk.Bsize)
}

// awaitPassdown waits until the pool passes discards down, or stops doing so if want is false.
func (r *trial) awaitPassdown(want bool) error {
	for deadline := time.Now().Add(callLimit); ; time.Sleep(20 * time.Millisecond) {
		passes := false
		r.control(func(c *devmapper.Control) error {
			_, targets, err := c.Table(r.PoolName)
			passes = err == nil && !strings.Contains(targets[0].Params, "no_discard_passdown")
			return err
		})
		switch {
		case !r.running():
			return errors.New("the daemon has ended")
		case passes == want:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("the pool passes discards down: %t", passes)
		}
	}
}

// takePoolOut removes the pool and its volumes from the kernel, as `dmsetup remove_all` does.
func (r *trial) takePoolOut() {
	r.Helper()
	r.control(func(c *devmapper.Control) error {
		for _, name := range append(harnesstest.MappedDevices(r, r.PoolName+"-snap-"), r.PoolName) {
			err := c.Deactivate(name)
			for deadline := time.Now().Add(callLimit); errors.Is(err, devmapper.ErrBusy) && time.Now().Before(deadline); {
				time.Sleep(10 * time.Millisecond)
				err = c.Deactivate(name)
			}
			if err != nil && !errors.Is(err, devmapper.ErrNotFound) {
				return err
			}
		}
		return nil
	})
}
