package main

import (
	"context"
	"errors"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/diff"
	diffproxy "github.com/containerd/containerd/v2/core/diff/proxy"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/check"
	"github.com/thinsnap/thinsnap/internal/clients"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/metadata"
)

func client(t *testing.T, address string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	return conn
}

// staticSnapshotter answers every call of Mounts.
type staticSnapshotter struct{ snapshots.Snapshotter }

func (staticSnapshotter) Mounts(context.Context, string) ([]mount.Mount, error) {
	return []mount.Mount{{Type: "ext4", Source: "/dev/mapper/thinsnap-snap-3"}}, nil
}

// TestAnswersWithoutThePool: while the pool cannot be opened, calls of containerd and of the
// operator are Unavailable with the reason, which the unit's status also has. Once the pool is
// open, they work.
func TestAnswersWithoutThePool(t *testing.T) {
	notified := systemd(t)
	cfg := testConfig(t)
	var closed atomic.Int32
	mended := make(chan struct{})
	b := backend{open: func(context.Context, config.Config) (*service, error) {
		select {
		case <-mended:
			return fakeOpen(staticSnapshotter{}, &closed).open(context.Background(), cfg)
		default:
			return nil, errors.Join(errors.New("open /dev/sdb: no such device"), errdefs.ErrFailedPrecondition)
		}
	}}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, cfg, b) }()
	const reason = "the pool is not open: open /dev/sdb: no such device; failed precondition"
	require.Equal(t, "READY=1\nSTATUS="+reason, told(t, notified))

	conn := client(t, cfg.Address)
	differ, ok := diffproxy.NewDiffApplier(diffapi.NewDiffClient(conn)).(interface {
		diff.Applier
		diff.Comparer
	})
	require.True(t, ok)
	_, err := differ.Apply(t.Context(), ocispec.Descriptor{}, nil)
	require.ErrorIs(t, err, errdefs.ErrNotImplemented, "containerd asks its next differ")
	overlay := []mount.Mount{{Type: "overlay", Source: "overlay"}}
	ours := []mount.Mount{{Type: "ext4", Source: "/dev/mapper/thinsnap-snap-3"}}
	_, err = differ.Compare(t.Context(), overlay, overlay)
	require.ErrorIs(t, err, errdefs.ErrNotImplemented)
	_, err = differ.Compare(t.Context(), ours, ours)
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.ErrorContains(t, err, reason)
	sn := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "thinsnap")
	_, err = sn.Mounts(t.Context(), "k")
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.ErrorContains(t, err, reason)
	err = sn.Walk(t.Context(), func(context.Context, snapshots.Info) error { return nil })
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	operator := admin.NewClient(cfg.AdminAddress)
	_, err = operator.Info(t.Context())
	require.ErrorIs(t, err, admin.ErrNotOpen)
	require.ErrorContains(t, err, reason)
	for _, command := range []string{"info", "ls", "leftovers"} {
		r := try(t, false, backend{}, command, "--admin-address", cfg.AdminAddress)
		require.Equal(t, exitFailure, r.code)
		require.Contains(t, r.err, "thinsnap: "+reason)
	}

	close(mended)
	for state := ""; state != ready; { // earlier attempts are reported, too
		state = told(t, notified)
	}
	mounts, err := sn.Mounts(t.Context(), "k")
	require.NoError(t, err)
	require.Len(t, mounts, 1)
	descriptor, err := differ.Compare(t.Context(), ours, ours)
	require.NoError(t, err)
	require.Equal(t, "a layer", descriptor.MediaType)
	_, err = operator.Info(t.Context())
	require.NoError(t, err)
	stop()
	require.NoError(t, <-ended)
	require.Equal(t, int32(1), closed.Load())
}

// TestCheckWithoutThePool: the command checks the root itself, and reports the reason as a finding.
func TestCheckWithoutThePool(t *testing.T) {
	o := newOpening(nil)
	o.last.Store(&attempt{err: errors.New("the disk is gone")})
	address := fakeDaemonOf(t, lateReports{o})
	rootErr := error(nil)
	b := backend{checkRoot: func(_ context.Context, _ config.Config, repair bool) (check.Report, error) {
		lost := check.Finding{Kind: check.KindMissing, Subject: "snapshot", Text: "gone", Repair: "wait"}
		if repair {
			return check.Report{Repaired: []check.Finding{lost}}, rootErr
		}
		return check.Report{Findings: []check.Finding{lost}}, rootErr
	}}
	const notOpen = "the pool is not open: the disk is gone; thinsnap retries until it is"
	r := try(t, false, b, "check", "--admin-address", address)
	require.Equal(t, exitFailure, r.code)
	require.Contains(t, r.out, "problem: pool: "+notOpen+"\nproblem: snapshot: gone\n")
	r = try(t, false, b, "check", "--repair", "--admin-address", address)
	require.Equal(t, exitOK, r.code)
	require.Contains(t, r.out, "repaired: snapshot: gone\nno problems left\n")
	rootErr = metadata.ErrLocked
	require.Equal(t, result{exitFailure, "", "thinsnap: " + notOpen + "\n"}, try(t, false, b, "check", "--admin-address", address),
		"an attempt is under way")
}

// TestDestroyBesideADaemon: a daemon that waits for its pool would create a new one.
func TestDestroyBesideADaemon(t *testing.T) {
	waiting := newOpening(nil)
	waiting.last.Store(&attempt{err: errors.New("the disk is gone")})
	destroyed := 0
	b := backend{
		recordedPool: recorded(metadata.PoolRecord{Mode: config.ModeLoop, Name: "thinsnap"}),
		destroyPool:  func(context.Context, config.Config) error { destroyed++; return nil },
	}
	for _, address := range []string{fakeDaemonOf(t, lateReports{waiting}), fakeDaemonOf(t, fakeReports{})} {
		r := try(t, false, b, "pool", "destroy", "--yes", "--admin-address", address)
		require.Equal(t, exitFailure, r.code)
		require.Contains(t, r.err, "a daemon is running, and would create a new pool")
		require.Zero(t, destroyed)
	}
	nothing := filepath.Join(t.TempDir(), "admin.sock")
	require.Equal(t, exitOK, try(t, false, b, "pool", "destroy", "--yes", "--admin-address", nothing).code)
	require.Equal(t, 1, destroyed)
}

// TestCallsWaitForTheFirstAttempt: calls wait up to firstWait. After a failed attempt they do not
// wait.
func TestCallsWaitForTheFirstAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opened := make(chan error)
		o := newOpening(func(context.Context) (*service, error) {
			if err := <-opened; err != nil {
				return nil, err
			}
			return &service{clients: onlyDefault(staticSnapshotter{}), reports: fakeReports{}, close: func() error { return nil }}, nil
		})
		o.start(t.Context(), func(error) {})
		gone, leave := context.WithCancel(t.Context())
		leave()
		require.ErrorIs(t, lateAdmission{o, config.DefaultClient}.Admit(gone, clients.Call{}), context.Canceled)
		sn := lateSnapshotter{o, config.DefaultClient}
		begun := time.Now()
		_, err := sn.Mounts(t.Context(), "k")
		require.ErrorIs(t, err, admin.ErrNotOpen)
		require.ErrorContains(t, err, "the pool is not open yet")
		require.Equal(t, firstWait, time.Since(begun))
		_, err = sn.Stat(t.Context(), "k")
		require.ErrorIs(t, err, admin.ErrNotOpen)
		require.Equal(t, firstWait, time.Since(begun), "later calls do not wait")
		_, err = lateReports{o}.Info(t.Context())
		require.ErrorIs(t, err, admin.ErrNotOpen, "the operator's calls do not wait")
		require.Nil(t, lateReports{o}.Ioctls())

		opened <- errors.New("no disk")
		synctest.Wait()
		require.ErrorContains(t, sn.Remove(t.Context(), "k"), "the pool is not open: no disk")
		begun = time.Now()
		require.ErrorContains(t, sn.Cleanup(t.Context()), "no disk", "during a later attempt")
		require.Zero(t, time.Since(begun))

		opened <- nil
		synctest.Wait()
		_, err = sn.Mounts(t.Context(), "k")
		require.NoError(t, err)
		require.ErrorIs(t, sn.Cleanup(t.Context()), errdefs.ErrNotImplemented, "the snapshotter has no Cleanup")
		require.NoError(t, lateAdmission{o, config.DefaultClient}.Admit(t.Context(), clients.Call{}))
		require.NoError(t, o.close())
	})
}

// TestCallsWaitAndGetTheResult: waiting calls get the result of the first attempt.
func TestCallsWaitAndGetTheResult(t *testing.T) {
	for _, result := range []error{nil, errors.New("no disk")} {
		synctest.Test(t, func(t *testing.T) {
			opened := make(chan struct{})
			o := newOpening(func(context.Context) (*service, error) {
				<-opened
				return &service{clients: onlyDefault(staticSnapshotter{}), close: func() error { return nil }}, result
			})
			o.start(t.Context(), func(error) {})
			waiting := make(chan error)
			go func() {
				_, err := lateSnapshotter{o, config.DefaultClient}.Mounts(t.Context(), "k")
				waiting <- err
			}()
			synctest.Wait()
			close(opened)
			if err := <-waiting; result != nil {
				require.ErrorContains(t, err, "the pool is not open: no disk")
			} else {
				require.NoError(t, err)
			}
			require.NoError(t, o.close())
		})
	}
}

// TestPausesBetweenAttempts: the pauses grow up to a minute. A locked root ends the daemon only at
// the first attempt: later, a command such as a repair may use the root.
func TestPausesBetweenAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at []time.Duration
		begun := time.Now()
		ctx, stop := context.WithCancel(t.Context())
		o := newOpening(func(context.Context) (*service, error) {
			at = append(at, time.Since(begun).Round(time.Second))
			if len(at) == 1 {
				return nil, errors.New("no disk")
			}
			return nil, metadata.ErrLocked
		})
		o.start(ctx, func(error) {})
		time.Sleep(5 * time.Minute)
		stop()
		require.NoError(t, o.close())
		var want []time.Duration
		for _, seconds := range []int{0, 1, 3, 7, 15, 31, 63, 123, 183, 243} {
			want = append(want, time.Duration(seconds)*time.Second)
		}
		require.Equal(t, want, at)
		require.Empty(t, o.failed)
	})
}

// TestStopDuringAStuckAttempt: an attempt that hangs in the kernel does not stop the process from
// ending.
func TestStopDuringAStuckAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stuck := make(chan struct{})
		o := newOpening(func(context.Context) (*service, error) {
			<-stuck
			return nil, errors.New("too late")
		})
		o.start(t.Context(), func(error) {})
		begun := time.Now()
		require.NoError(t, o.close())
		require.LessOrEqual(t, time.Since(begun), stopTime)
		close(stuck)
	})
}

// TestPanicInAnAttempt: a panic is an error like others, and the daemon continues.
func TestPanicInAnAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		attempts := 0
		o := newOpening(func(context.Context) (*service, error) {
			if attempts++; attempts == 1 {
				panic("a bug")
			}
			return &service{clients: onlyDefault(staticSnapshotter{}), close: func() error { return nil }}, nil
		})
		o.start(t.Context(), func(error) {})
		_, err := lateSnapshotter{o, config.DefaultClient}.Mounts(t.Context(), "k")
		require.ErrorIs(t, err, errdefs.ErrUnavailable)
		require.ErrorContains(t, err, "the pool is not open: panic while opening the pool: a bug")
		time.Sleep(leastPause)
		synctest.Wait()
		_, err = lateSnapshotter{o, config.DefaultClient}.Mounts(t.Context(), "k")
		require.NoError(t, err)
		require.NoError(t, o.close())
	})
}
