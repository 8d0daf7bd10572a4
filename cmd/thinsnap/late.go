package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/check"
	"github.com/thinsnap/thinsnap/internal/clients"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/daemon"
)

// lateSnapshotter is a client's snapshotter for a server that starts before the pool is open. Calls
// wait for the first attempt to open it.
type lateSnapshotter struct {
	*opening
	client string
}

// late waits for the open snapshotter, and calls do with it.
func late[T any](ctx context.Context, s lateSnapshotter, do func(snapshots.Snapshotter) (T, error)) (T, error) {
	sv, err := s.await(ctx)
	if err != nil {
		var none T
		return none, err
	}
	return do(sv.clients[s.client].snapshotter)
}

// lateError is like late, for calls that return only an error.
func lateError(ctx context.Context, s lateSnapshotter, do func(snapshots.Snapshotter) error) error {
	_, err := late(ctx, s, func(sn snapshots.Snapshotter) (struct{}, error) { return struct{}{}, do(sn) })
	return err
}

// Stat implements snapshots.Snapshotter, as the following methods do.
func (s lateSnapshotter) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	return late(ctx, s, func(sn snapshots.Snapshotter) (snapshots.Info, error) { return sn.Stat(ctx, key) })
}

func (s lateSnapshotter) Update(
	ctx context.Context, info snapshots.Info, paths ...string,
) (snapshots.Info, error) {
	return late(ctx, s, func(sn snapshots.Snapshotter) (snapshots.Info, error) { return sn.Update(ctx, info, paths...) })
}

func (s lateSnapshotter) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	return late(ctx, s, func(sn snapshots.Snapshotter) (snapshots.Usage, error) { return sn.Usage(ctx, key) })
}

func (s lateSnapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	return late(ctx, s, func(sn snapshots.Snapshotter) ([]mount.Mount, error) { return sn.Mounts(ctx, key) })
}

func (s lateSnapshotter) Prepare(
	ctx context.Context, key, parent string, opts ...snapshots.Opt,
) ([]mount.Mount, error) {
	return late(ctx, s, func(sn snapshots.Snapshotter) ([]mount.Mount, error) {
		return sn.Prepare(ctx, key, parent, opts...)
	})
}

func (s lateSnapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return late(ctx, s, func(sn snapshots.Snapshotter) ([]mount.Mount, error) {
		return sn.View(ctx, key, parent, opts...)
	})
}

func (s lateSnapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	return lateError(ctx, s, func(sn snapshots.Snapshotter) error { return sn.Commit(ctx, name, key, opts...) })
}

func (s lateSnapshotter) Remove(ctx context.Context, key string) error {
	return lateError(ctx, s, func(sn snapshots.Snapshotter) error { return sn.Remove(ctx, key) })
}

func (s lateSnapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	return lateError(ctx, s, func(sn snapshots.Snapshotter) error { return sn.Walk(ctx, fn, filters...) })
}

// Cleanup implements snapshots.Cleaner.
func (s lateSnapshotter) Cleanup(ctx context.Context) error {
	return lateError(ctx, s, func(sn snapshots.Snapshotter) error {
		if cleaner, ok := sn.(snapshots.Cleaner); ok {
			return cleaner.Cleanup(ctx)
		}
		return errdefs.ErrNotImplemented
	})
}

// Close does nothing: opening.close closes the snapshotter.
func (lateSnapshotter) Close() error { return nil }

type lateAdmission struct {
	*opening
	client string
}

// Admit implements rpc.Admission.
func (a lateAdmission) Admit(ctx context.Context, call clients.Call) error {
	sv, err := a.await(ctx)
	if err != nil || sv.clients[a.client].admission == nil {
		return err
	}
	return sv.clients[a.client].admission.Admit(ctx, call)
}

// lateComparer is the comparer for a server that starts before the pool is open. It leaves mounts
// that cannot belong to this daemon's pool to containerd's next differ, without a wait.
type lateComparer struct {
	*opening
	config config.Config
}

// Compare implements diff.Comparer.
func (c lateComparer) Compare(
	ctx context.Context, lower, upper []mount.Mount, opts ...diff.Opt,
) (ocispec.Descriptor, error) {
	foreign := func(m mount.Mount) bool { return !daemon.CouldBeOurs(c.config, m) }
	if slices.ContainsFunc(slices.Concat(lower, upper), foreign) {
		return ocispec.Descriptor{}, fmt.Errorf("not mounts of thinsnap's snapshots: %w", errdefs.ErrNotImplemented)
	}
	sv, err := c.await(ctx)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return sv.comparer.Compare(ctx, lower, upper, opts...)
}

// lateReports are the daemon's reports. They fail with admin.ErrNotOpen until the pool is open.
type lateReports struct{ *opening }

// lateReport calls do with the reports.
func lateReport[T any](r lateReports, do func(admin.Backend) (T, error)) (T, error) {
	sv, err := r.get()
	if err != nil {
		var none T
		return none, err
	}
	return do(sv.reports)
}

// Info implements admin.Backend, as the following methods do.
func (r lateReports) Info(ctx context.Context) (admin.Info, error) {
	return lateReport(r, func(b admin.Backend) (admin.Info, error) { return b.Info(ctx) })
}

func (r lateReports) Pool(ctx context.Context) (admin.Pool, error) {
	return lateReport(r, func(b admin.Backend) (admin.Pool, error) { return b.Pool(ctx) })
}

func (r lateReports) Snapshots(ctx context.Context, labels bool) ([]admin.Snapshot, error) {
	return lateReport(r, func(b admin.Backend) ([]admin.Snapshot, error) { return b.Snapshots(ctx, labels) })
}

func (r lateReports) Inspect(ctx context.Context, key string) (admin.Inspection, error) {
	return lateReport(r, func(b admin.Backend) (admin.Inspection, error) { return b.Inspect(ctx, key) })
}

func (r lateReports) Diff(ctx context.Context, key string) (admin.Difference, error) {
	return lateReport(r, func(b admin.Backend) (admin.Difference, error) { return b.Diff(ctx, key) })
}

func (r lateReports) Trash(ctx context.Context, limit int) ([]admin.Removed, error) {
	return lateReport(r, func(b admin.Backend) ([]admin.Removed, error) { return b.Trash(ctx, limit) })
}

func (r lateReports) Fill(ctx context.Context, age time.Duration) (admin.Fill, error) {
	return lateReport(r, func(b admin.Backend) (admin.Fill, error) { return b.Fill(ctx, age) })
}

func (r lateReports) Check(ctx context.Context, repair bool) (check.Report, error) {
	return lateReport(r, func(b admin.Backend) (check.Report, error) { return b.Check(ctx, repair) })
}

func (r lateReports) ExtendPool(ctx context.Context, want admin.Extension) (admin.Pool, error) {
	return lateReport(r, func(b admin.Backend) (admin.Pool, error) { return b.ExtendPool(ctx, want) })
}

func (r lateReports) Trim(ctx context.Context, key string) (admin.Trimming, error) {
	return lateReport(r, func(b admin.Backend) (admin.Trimming, error) { return b.Trim(ctx, key) })
}

func (r lateReports) Fork(ctx context.Context, key string) (admin.Fork, error) {
	return lateReport(r, func(b admin.Backend) (admin.Fork, error) { return b.Fork(ctx, key) })
}

func (r lateReports) Owners(ctx context.Context) (admin.Owners, error) {
	return lateReport(r, func(b admin.Backend) (admin.Owners, error) { return b.Owners(ctx) })
}

func (r lateReports) Leftovers(ctx context.Context) ([]admin.Leftover, error) {
	return lateReport(r, func(b admin.Backend) ([]admin.Leftover, error) { return b.Leftovers(ctx) })
}

func (r lateReports) RemoveLeftover(ctx context.Context, id uint32) ([]admin.Leftover, error) {
	return lateReport(r, func(b admin.Backend) ([]admin.Leftover, error) { return b.RemoveLeftover(ctx, id) })
}

func (r lateReports) AcceptClient(ctx context.Context, name string) (admin.ClientInfo, error) {
	return lateReport(r, func(b admin.Backend) (admin.ClientInfo, error) { return b.AcceptClient(ctx, name) })
}

func (r lateReports) ResetClient(ctx context.Context, name string) (admin.ClientInfo, error) {
	return lateReport(r, func(b admin.Backend) (admin.ClientInfo, error) { return b.ResetClient(ctx, name) })
}

func (r lateReports) RemoveClient(ctx context.Context, name string) (admin.RemovedClient, error) {
	return lateReport(r, func(b admin.Backend) (admin.RemovedClient, error) { return b.RemoveClient(ctx, name) })
}

func (r lateReports) Ioctls() map[string]uint64 {
	sv, err := r.get()
	if err != nil {
		return nil
	}
	return sv.reports.Ioctls()
}
