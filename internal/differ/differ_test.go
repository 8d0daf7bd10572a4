package differ

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	coreDiff "github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// fakeSnapshots has the mounts of type "ours".
type fakeSnapshots struct {
	freeze func(ctx context.Context, key string) error
	lost   error // of the snapshot "lost"
}

func (fakeSnapshots) FindMounted(_ context.Context, m mount.Mount) (string, error) {
	if m.Type == "broken" {
		return "", errdefs.ErrUnavailable
	}
	if m.Type != "ours" {
		return "", errdefs.ErrNotFound
	}
	return m.Source, nil
}

func (f fakeSnapshots) Freeze(ctx context.Context, key string) (*snapshotter.Frozen, error) {
	return nil, f.freeze(ctx, key)
}

func (f fakeSnapshots) RequireWhole(_ context.Context, key string) error {
	if key == "lost" {
		return f.lost
	}
	return nil
}

func mounts(typ, source string) []mount.Mount { return []mount.Mount{{Type: typ, Source: source}} }

// TestNextDifferIsAsked: unsupported and failed comparisons are left to containerd's next differ;
// errors of the store are not.
func TestNextDifferIsAsked(t *testing.T) {
	frozen := 0
	sn := fakeSnapshots{freeze: func(context.Context, string) error {
		frozen++
		return errdefs.ErrResourceExhausted
	}}
	d := New(sn, nil, nil, Options{})
	ours := mounts("ours", "a")
	for name, try := range map[string]func() error{
		"an overlay": func() error {
			_, err := d.Compare(t.Context(), mounts("overlay", "overlay"), ours)
			return err
		},
		"one side is another's": func() error { _, err := d.Compare(t.Context(), ours, mounts("ext4", "/dev/sda")); return err },
		"no mount":              func() error { _, err := d.Compare(t.Context(), nil, ours); return err },
		"two mounts":            func() error { _, err := d.Compare(t.Context(), ours, append(ours, ours...)); return err },
		"a mount below another directory": func() error {
			_, err := d.Compare(t.Context(), ours, []mount.Mount{{Type: "ours", Source: "b", Target: "below"}})
			return err
		},
		"another media type": func() error {
			_, err := d.Compare(t.Context(), ours, ours, coreDiff.WithMediaType("application/x"))
			return err
		},
	} {
		require.ErrorIs(t, try(), errdefs.ErrNotImplemented, name)
	}
	require.Zero(t, frozen)
	require.Equal(t, Stats{}, d.Stats())

	_, err := d.Compare(t.Context(), ours, ours)
	require.ErrorIs(t, err, errdefs.ErrNotImplemented, "no frozen copy")
	require.ErrorContains(t, err, "resource exhausted")
	require.Equal(t, Stats{Left: 1}, d.Stats())

	for _, sides := range [][2][]mount.Mount{{mounts("broken", ""), ours}, {ours, mounts("broken", "")}} {
		_, err = d.Compare(t.Context(), sides[0], sides[1])
		require.ErrorIs(t, err, errdefs.ErrUnavailable)
		require.Equal(t, codes.Unavailable, status.Code(errgrpc.ToGRPC(err)))
	}
	require.Equal(t, Stats{Left: 1}, d.Stats())
}

// TestLongComparisonIsLogged: the log has the progress of a long comparison.
func TestLongComparisonIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sn := fakeSnapshots{freeze: func(context.Context, string) error {
			time.Sleep(2*progressTime + time.Second)
			return errdefs.ErrUnavailable
		}}
		d := New(sn, nil, nil, Options{})
		lines, out := &bytes.Buffer{}, log.L.Logger.Out
		log.L.Logger.SetOutput(lines)
		defer log.L.Logger.SetOutput(out)
		_, err := d.Compare(t.Context(), mounts("ours", "a"), mounts("ours", "b"))
		require.ErrorIs(t, err, errdefs.ErrNotImplemented)
		require.Equal(t, 2, strings.Count(lines.String(), `msg="comparing snapshots" duration=`), lines)
		require.Contains(t, lines.String(), "lower=a upper=b")
	})
}

// TestComparisonsAreLimited: two comparisons run, the others wait, and a cancelled one ends.
func TestComparisonsAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		sn := fakeSnapshots{freeze: func(ctx context.Context, _ string) error {
			select {
			case <-release:
				return errors.New("released")
			case <-ctx.Done():
				return ctx.Err()
			}
		}}
		d := New(sn, nil, nil, Options{})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 5)
		for range 5 {
			go func() {
				_, err := d.Compare(ctx, mounts("ours", "a"), mounts("ours", "b"))
				ended <- err
			}()
		}
		synctest.Wait()
		require.EqualValues(t, maxRunning, d.Stats().Running)
		require.Empty(t, ended)
		release <- struct{}{}
		require.ErrorIs(t, <-ended, errdefs.ErrNotImplemented)
		cancel()
		for range 4 {
			require.ErrorIs(t, <-ended, context.Canceled)
		}
		require.Equal(t, Stats{Left: 1, Cancelled: d.Stats().Cancelled}, d.Stats())
	})
}

// TestLeftToTheNextDiffer: for each reason, the gRPC status makes containerd ask its next differ.
func TestLeftToTheNextDiffer(t *testing.T) {
	for _, reason := range []error{errdefs.ErrResourceExhausted, errdefs.ErrFailedPrecondition, errdefs.ErrUnavailable,
		errdefs.ErrDataLoss, errdefs.ErrNotFound, errors.New("another")} {
		sn := fakeSnapshots{freeze: func(context.Context, string) error { return reason }}
		_, err := New(sn, nil, nil, Options{}).Compare(t.Context(), mounts("ours", "a"), mounts("ours", "b"))
		require.Equal(t, codes.Unimplemented, status.Code(errgrpc.ToGRPC(err)), "%v", err)
		require.ErrorContains(t, err, reason.Error())
	}
}

// TestLostWritesAreNotLeftToTheNextDiffer: the next differ would make a layer without the lost
// writes, and report no error. So it gets only snapshots that have surely lost none.
func TestLostWritesAreNotLeftToTheNextDiffer(t *testing.T) {
	lost := fmt.Errorf("freeze: %w", metadata.ErrWritesLost)
	for _, freeze := range []error{lost, snapshotter.ErrDamaged, errdefs.ErrUnavailable} {
		d := New(fakeSnapshots{lost: lost, freeze: func(context.Context, string) error { return freeze }}, nil, nil, Options{})
		_, err := d.Compare(t.Context(), mounts("ours", "a"), mounts("ours", "lost"))
		require.Equal(t, codes.DataLoss, status.Code(errgrpc.ToGRPC(err)), "%v", err)
		require.ErrorContains(t, err, "pull or build it again")
		require.Equal(t, Stats{Failed: 1}, d.Stats())
	}
	sn := fakeSnapshots{lost: lost}
	_, err := New(sn, nil, nil, Options{}).Compare(t.Context(), mounts("ours", "a"), mounts("ours", "lost"),
		coreDiff.WithMediaType("application/x"))
	require.Equal(t, codes.DataLoss, status.Code(errgrpc.ToGRPC(err)), "%v", err)

	for _, lower := range [][]mount.Mount{nil, mounts("overlay", "overlay"), {{Type: "ours", Source: "a", Target: "below"}}} {
		_, err = New(sn, nil, nil, Options{}).Compare(t.Context(), lower, mounts("ours", "lost"))
		require.Equal(t, codes.DataLoss, status.Code(errgrpc.ToGRPC(err)), "%v", err)
	}

	sn = fakeSnapshots{lost: errdefs.ErrUnavailable, freeze: func(context.Context, string) error { return errdefs.ErrNotFound }}
	_, err = New(sn, nil, nil, Options{}).Compare(t.Context(), mounts("ours", "lost"), mounts("ours", "a"))
	require.Equal(t, codes.Unavailable, status.Code(errgrpc.ToGRPC(err)), "%v", err)
}

// TestWaitForATurnIsLimited: a comparison that waits too long for others is left to the next
// differ.
func TestWaitForATurnIsLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sn := fakeSnapshots{freeze: func(ctx context.Context, _ string) error {
			<-ctx.Done()
			return ctx.Err()
		}}
		d := New(sn, nil, nil, Options{})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for range maxRunning {
			go func() { _, _ = d.Compare(ctx, mounts("ours", "a"), mounts("ours", "b")) }()
		}
		synctest.Wait()
		begun := time.Now()
		_, err := d.Compare(ctx, mounts("ours", "a"), mounts("ours", "b"))
		require.ErrorIs(t, err, errdefs.ErrNotImplemented)
		require.Equal(t, turnWait, time.Since(begun))
		require.Equal(t, Stats{Running: maxRunning, Left: 1}, d.Stats())
		_, _, err = d.List(ctx, "a", "b")
		require.ErrorIs(t, err, errdefs.ErrUnavailable)
	})
}
