package failpoint

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/internal/check"
)

type operation struct {
	name    string
	options harness.Options
	// setup prepares the operation; may be nil.
	setup func(*trial)
	// do runs the operation. After the crash it runs again with the same key: it accepts steps that are already done.
	do func(*trial) error
	// holds requires the guarantees of a successful do, also after later crashes; may be nil.
	holds func(*trial)
	// starts: do starts the daemon, and setup has stopped it.
	starts bool
	// only: the failpoints to crash at, if others would show nothing new; nil for all.
	only []string
	// finds: the expected kinds of a check's findings.
	finds []check.Kind
	// disk is the size of a disk for the root, in bytes; 0 for the temporary directory.
	disk int64
}

// active makes an active snapshot with a file.
func active(r *trial) {
	r.Helper()
	require.NoError(r, r.prepare(r.key("a"), layer))
	r.write(r.key("a"))
}

// mounted is like active; the snapshot stays mounted.
func mounted(r *trial) {
	r.Helper()
	active(r)
	r.mount(r.key("a"))
}

// shared is like active; the daemon has mounted the snapshot, for binds.
func shared(r *trial) {
	r.Helper()
	mounted(r)
	mounts, err := r.mounts(r.key("a"))
	require.NoError(r, err)
	require.Equal(r, "bind", mounts[0].Type)
	r.unmount()
}

// committed makes a layer with a file.
func committed(r *trial) {
	r.Helper()
	active(r)
	require.NoError(r, r.commit(r.key("c"), r.key("a")))
}

// withSpares makes snapshots until the layer has spares.
func withSpares(r *trial) {
	r.Helper()
	for i := range 2 {
		require.NoError(r, r.prepare(r.key("used-"+strconv.Itoa(i)), layer))
	}
	r.awaitIdle()
	require.Positive(r, r.Info(r).Devices.Spares)
}

// toUnpack returns a key like those that containerd uses to unpack a layer.
func toUnpack(r *trial) string {
	return "test/1/" + fmt.Sprintf(snapshots.UnpackKeyFormat, strconv.Itoa(r.number), digest.FromString("layer"))
}

func requireActive(r *trial) { r.Helper(); r.requireFiles(r.key("a"), first, r.key("a")) }

func requireCommitted(r *trial) {
	r.Helper()
	r.requireKind(r.key("c"), snapshots.KindCommitted)
	r.requireGone(r.key("a"))
	r.requireLayerFiles(r.key("c"), first, r.key("a"))
}

func commit(r *trial) error { return r.commit(r.key("c"), r.key("a")) }

// removal removes snapshots and waits for background work.
func removal(keys ...string) func(*trial) error {
	return func(r *trial) error {
		for _, key := range keys {
			if err := r.remove(r.key(key)); err != nil {
				return err
			}
		}
		return r.cleanup()
	}
}

func areGone(keys ...string) func(*trial) {
	return func(r *trial) {
		r.Helper()
		for _, key := range keys {
			r.requireGone(r.key(key))
		}
	}
}

// operations returns the operations of a running daemon.
func operations() []operation {
	spares := harness.Options{}
	none := harness.Options{NoSpares: true}
	further := harness.Options{NoSpares: true, Clients: []string{"other"}}
	xfs := harness.Options{NoSpares: true, Filesystem: "xfs", BaseSize: "300MiB"}
	return []operation{
		{
			name: "prepare", options: none,
			do:    func(r *trial) error { return r.prepare(r.key("a"), "") },
			holds: func(r *trial) { r.requireFiles(r.key("a")) },
		}, {
			name: "prepare child", options: none,
			do:    func(r *trial) error { return r.prepare(r.key("a"), layer) },
			holds: func(r *trial) { r.requireFiles(r.key("a"), first) },
		}, {
			name: "prepare larger", options: none,
			do: func(r *trial) error {
				return r.prepare(r.key("a"), layer, sized(128<<20))
			},
			holds: func(r *trial) { r.requireFiles(r.key("a"), first) },
		}, {
			name: "prepare smaller", options: none,
			do:    func(r *trial) error { return r.prepare(r.key("a"), "", sized(32<<20)) },
			holds: func(r *trial) { r.requireFiles(r.key("a")) },
		}, {
			name: "prepare from a spare", options: spares,
			setup: withSpares,
			do:    func(r *trial) error { return r.prepare(r.key("a"), layer) },
			holds: func(r *trial) { r.requireFiles(r.key("a"), first) },
		}, {
			name: "prepare after a start", options: none,
			setup: func(r *trial) {
				r.Kill()
				r.revive()
			},
			do:    func(r *trial) error { return r.prepare(r.key("a"), layer) },
			holds: func(r *trial) { r.requireFiles(r.key("a"), first) },
		}, {
			name: "prepare to unpack", options: none,
			do:    func(r *trial) error { return r.prepare(toUnpack(r), layer) },
			holds: func(r *trial) { r.requireFiles(toUnpack(r), first) },
		}, {
			name: "view", options: none,
			do:    func(r *trial) error { return r.view(r.key("v"), layer) },
			holds: func(r *trial) { r.requireFiles(r.key("v"), first) },
		}, {
			name: "view of a writable volume", options: none,
			// A Commit leaves a volume in this state for a moment.
			setup: func(r *trial) {
				active(r)
				m := r.deviceOf(r.key("a"))
				require.NoError(r, commit(r))
				r.awaitIdle()
				r.control(func(c *devmapper.Control) error {
					_, err := c.Activate(m.device.Name, m.device.UUID, m.targets, false)
					return err
				})
			},
			do:    func(r *trial) error { return r.view(r.key("v"), r.key("c")) },
			holds: func(r *trial) { r.requireFiles(r.key("v"), first, r.key("a")) },
		}, {
			name: "mounts after a reboot", options: none,
			setup: func(r *trial) { active(r); r.rebooted(r.key("a")) },
			do:    func(r *trial) error { _, err := r.mounts(r.key("a")); return err },
			holds: requireActive,
		}, {
			name: "mounts of a mounted snapshot", options: none,
			setup: mounted,
			do:    func(r *trial) error { _, err := r.mounts(r.key("a")); return err },
			holds: requireActive,
		}, {
			name: "mounts of a disk of a guest", options: none,
			only:  []string{"afterSuspend", "afterCopy", "afterServedCopy", "afterServe"},
			setup: func(r *trial) { active(r); r.open(r.key("a")) },
			do:    func(r *trial) error { _, err := r.mounts(r.key("a")); return err },
			holds: requireActive,
		}, {
			name: "fork", options: none,
			setup: mounted,
			do: func(r *trial) error {
				fork, err := r.Admin().Fork(r.Context(), r.key("a"))
				if err != nil {
					return err
				}
				return r.prepare(r.key("f"), layer, snapshots.WithLabels(map[string]string{fork.Label: fork.Token}))
			},
			holds: func(r *trial) { r.requireFiles(r.key("f"), first, r.key("a")); requireActive(r) },
		}, {
			name: "prepare of a further client", options: further,
			do:    func(r *trial) error { return r.prepare(r.key("a"), layer) },
			holds: func(r *trial) { r.requireFiles(r.key("a"), first) },
		}, {
			name: "fork of a further client", options: further,
			setup: mounted,
			do: func(r *trial) error {
				fork, err := r.Admin().Fork(r.Context(), "@"+r.Clients[0]+"/"+r.key("a"))
				if err != nil {
					return err
				}
				return r.prepare(r.key("f"), layer, snapshots.WithLabels(map[string]string{fork.Label: fork.Token}))
			},
			holds: func(r *trial) { r.requireFiles(r.key("f"), first, r.key("a")); requireActive(r) },
		}, {
			name: "commit in use of a further client", options: further,
			setup: mounted, do: commit, holds: requireCommitted,
		}, {
			name: "remove of a further client", options: further,
			setup: func(r *trial) { committed(r); require.NoError(r, r.prepare(r.key("b"), r.key("c"))) },
			do:    removal("b", "c"), holds: areGone("b", "c"),
		}, {
			name: "commit", options: none,
			setup: active, do: commit, holds: requireCommitted,
		}, {
			name: "commit after a reboot", options: none,
			setup: func(r *trial) { active(r); r.rebooted(r.key("a")) }, do: commit, holds: requireCommitted,
		}, {
			name: "commit in use", options: none,
			setup: mounted, do: commit, holds: requireCommitted,
		}, {
			name: "commit in use xfs", options: xfs,
			only:  []string{"afterSuspend", "afterCopyInUse", "afterRecover", "beforeCommitRecord"},
			setup: mounted, do: commit, holds: requireCommitted,
		}, {
			name: "commit of a shared snapshot", options: none,
			setup: shared, do: commit, holds: requireCommitted,
		}, {
			name: "commit unpacked", options: none,
			setup: func(r *trial) {
				require.NoError(r, r.prepare(toUnpack(r), layer))
				r.write(toUnpack(r))
			},
			do: func(r *trial) error { return r.commit(r.key("c"), toUnpack(r)) },
			holds: func(r *trial) {
				r.requireGone(toUnpack(r))
				r.requireLayerFiles(r.key("c"), first, toUnpack(r))
			},
		}, {
			name: "remove", options: none,
			setup: active, do: removal("a"), holds: areGone("a"),
		}, {
			name: "remove a layer", options: none,
			setup: committed, do: removal("c"), holds: areGone("c"),
		}, {
			name: "remove a view", options: none,
			setup: func(r *trial) { require.NoError(r, r.view(r.key("v"), layer)) }, do: removal("v"), holds: areGone("v"),
		}, {
			name: "remove a layer with its view", options: none,
			setup: func(r *trial) { committed(r); require.NoError(r, r.view(r.key("v"), r.key("c"))) },
			do:    removal("v", "c"), holds: areGone("v", "c"),
		}, {
			name: "remove a shared snapshot", options: none,
			setup: shared, do: removal("a"), holds: areGone("a"),
		}, {
			name: "remove a layer with spares", options: spares,
			setup: committed, do: removal("c"), holds: areGone("c"),
		}, {
			name: "update", options: none,
			setup: active,
			do: func(r *trial) error {
				return r.call(func(ctx context.Context) error {
					info := snapshots.Info{Name: r.key("a"), Labels: map[string]string{"label": "value"}}
					_, err := r.sn.Update(ctx, info, "labels.label")
					return err
				})
			},
			holds: func(r *trial) {
				info, err := r.stat(r.key("a"))
				require.NoError(r, err)
				require.Equal(r, map[string]string{"label": "value"}, info.Labels)
				requireActive(r)
			},
		}, {
			name: "usage after a reboot", options: none,
			setup: func(r *trial) { active(r); r.rebooted(r.key("a")) },
			do: func(r *trial) error {
				return r.call(func(ctx context.Context) error {
					usage, err := r.sn.Usage(ctx, r.key("a"))
					if err == nil && usage.Size == 0 {
						err = errors.New("no space is used")
					}
					return err
				})
			},
			holds: requireActive,
		}, {
			name: "extend the pool", options: none,
			// A tmpfs does not allocate the files' blocks, and has less space.
			finds: []check.Kind{check.KindSpace},
			setup: active,
			do: func(r *trial) error {
				bytes := strconv.FormatUint(uint64(9<<30+r.number<<26), 10)
				_, err := r.TryRun(nil, "pool", "extend", "--data", bytes, "--metadata", strconv.Itoa(64<<20+r.number<<22))
				return err
			},
			holds: func(r *trial) {
				pool := r.Info(r).Pool
				require.EqualValues(r, 9<<30+r.number<<26, pool.Data.Total)
				require.EqualValues(r, 64<<20+r.number<<22, pool.Metadata.Total)
				requireActive(r)
			},
		}, {
			name: "stop", options: spares,
			setup: func(r *trial) {
				active(r)
				require.NoError(r, r.prepare(toUnpack(r), layer))
				r.write(toUnpack(r))
				withSpares(r)
			},
			do:    stop,
			holds: func(r *trial) { requireActive(r); r.requireFiles(toUnpack(r), first, toUnpack(r)) },
		}, {
			name: "start", options: none, starts: true,
			setup: leaveHalfDone,
			do:    start,
			holds: func(r *trial) {
				// The suspended device accepts writes again.
				if len(r.mounted) > 0 {
					file := filepath.Join(r.mounted[0], "resumed")
					require.NoError(r, os.WriteFile(file, nil, 0o600))
				}
				requireActive(r)
				areGone("removed", "canUndo")(r)
			},
		}, {
			name: "start with another base size", options: none, starts: true,
			only: []string{"afterFlushBase", "beforeBaseRecord", "afterBaseRecord", "beforeDiscardBase", "afterDiscardBase"},
			setup: func(r *trial) {
				active(r)
				r.Kill()
				setBaseSize(r)
			},
			do: start,
			holds: func(r *trial) {
				require.EqualValues(r, baseMiB(r)<<20, r.Info(r).Filesystem.BaseSize)
				requireActive(r)
			},
		},
	}
}

func stop(r *trial) error {
	if err := syscall.Kill(r.PID(), syscall.SIGTERM); err != nil {
		return err
	}
	<-r.Ended()
	return nil
}

// start starts the daemon, and waits for background work.
func start(r *trial) error {
	if !r.running() {
		if err := r.launched(r.T, r.env...); err != nil {
			return err
		}
		r.connect()
	}
	return r.cleanup()
}

// baseMiB returns another size in each trial.
func baseMiB(r *trial) int { return 64 + r.number }

func setBaseSize(r *trial) {
	r.Helper()
	written, err := os.ReadFile(r.Config())
	require.NoError(r, err)
	size := fmt.Sprintf("base_size = \"%dMiB\"", baseMiB(r))
	written = regexp.MustCompile(`base_size = .*`).ReplaceAll(written, []byte(size))
	require.NoError(r, os.WriteFile(r.Config(), written, 0o600))
}

func sized[N int | uint64](bytes N) snapshots.Opt {
	return snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotMaxSize: fmt.Sprint(bytes)})
}

// leaveHalfDone crashes the daemon with as much unfinished work as possible: a removed snapshot in the trash, a volume
// without an owner, and a suspended device.
func leaveHalfDone(r *trial) {
	r.Helper()
	active(r)
	suspended := r.deviceOf(r.key("a")).device
	r.mount(r.key("a"))
	require.NoError(r, r.prepare(r.key("removed"), layer))
	// An open device keeps the volume from being deleted.
	node, err := os.Open(devmapper.NodePath(r.deviceOf(r.key("removed")).device.Name))
	require.NoError(r, err)
	require.NoError(r, r.remove(r.key("removed")))
	r.arm(r.T, crash, "afterCreateSnap")
	require.Error(r, r.prepare(r.key("canUndo"), layer))
	require.True(r, r.crashed())
	require.NoError(r, node.Close())
	r.control(func(c *devmapper.Control) error {
		_, err := c.Suspend(suspended.Name, devmapper.SuspendOptions{})
		return err
	})
}
