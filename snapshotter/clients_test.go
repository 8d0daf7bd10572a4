package snapshotter_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/thinsnap/thinsnap/metadata"
)

func names(t *testing.T, sn snapshots.Snapshotter) map[string]bool {
	t.Helper()
	all := make(map[string]bool)
	require.NoError(t, sn.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
		all[info.Name] = true
		return nil
	}))
	return all
}

// idsUsed returns the number of volume ids that were used or tried.
func (b *bench) idsUsed(t *testing.T) int {
	t.Helper()
	return b.pool.Calls()["CreateSnap"]
}

// oddKeys has every byte, alone and at the end, strings that are special in a path or a shell, and lengths
// around the limits of pages and length fields.
func oddKeys() []string {
	keys := []string{
		"..", "../../../etc/passwd", "/etc/passwd", "a//b", "a/../b", "$(reboot)", "`reboot`", "a b", "-rf", "--help", "%s%n",
		"default/1/extract-1 x", "\x1b[2J", "\r\nok", "\u202egnp", "\ufeff", "\U0001f4a9", "null", "{}", strings.Repeat("/", 300), strings.Repeat("../", 1000),
	}
	for r := range rune(256) {
		keys = append(keys, string(r), "k"+string(r))
	}
	for n := 4; n <= 32768; n *= 2 {
		for _, length := range []int{n - 1, n, n + 1} {
			if length < metadata.MaxKeyLength {
				keys = append(keys, strings.Repeat("l", length))
			}
		}
	}
	return append(keys, strings.Repeat("m", metadata.MaxKeyLength-1), strings.Repeat("m", metadata.MaxKeyLength))
}

func TestOddKeys(t *testing.T) {
	config := fakeConfig()
	config.Spares = 0
	s := serve(t, newBench(t, config))
	sn, _ := s.client(t)
	keys := oddKeys()
	var all errgroup.Group
	all.SetLimit(64)
	for _, key := range keys {
		all.Go(func() error {
			mounts, err := sn.Prepare(t.Context(), key, "")
			if err != nil {
				return err
			}
			if strings.Contains(mounts[0].Source, key) && len(key) > 3 {
				return fmt.Errorf("%q is part of the device %s", key, mounts[0].Source)
			}
			_, err = sn.Mounts(t.Context(), key)
			return err
		})
	}
	require.NoError(t, all.Wait())
	got := names(t, sn)
	require.Len(t, got, len(keys))
	for _, key := range keys {
		require.True(t, got[key], "%q", key)
		all.Go(func() error {
			info, err := sn.Stat(t.Context(), key)
			if err == nil && info.Name != key {
				err = fmt.Errorf("%q is called %q", key, info.Name)
			}
			if name := key + "\x00committed"; err == nil && len(name) <= metadata.MaxKeyLength {
				if err = sn.Commit(t.Context(), name, key); err != nil {
					return err
				}
				key = name
			}
			if err == nil {
				err = sn.Remove(t.Context(), key)
			}
			return err
		})
	}
	require.NoError(t, all.Wait())
	require.Empty(t, names(t, sn))
	s.requireNoLeftovers(t)
}

// A refused call changes nothing and uses no volume id: a pool has a limited number of them.
func TestRefusedKeys(t *testing.T) {
	config := fakeConfig()
	config.Spares = 0
	s := serve(t, newBench(t, config))
	sn, conn := s.client(t)
	s.layer(t, "layer", "", "content")
	s.prepare(t, "a", "layer")
	before, used := s.records(t), s.idsUsed(t)
	for name, test := range map[string]struct {
		key   string
		class error
	}{
		"none":            {"", errdefs.ErrInvalidArgument},
		"one too long":    {strings.Repeat("k", metadata.MaxKeyLength+1), errdefs.ErrInvalidArgument},
		"far too long":    {strings.Repeat("k", 1<<17), errdefs.ErrInvalidArgument},
		"a large message": {strings.Repeat("k", 17<<20), errdefs.ErrResourceExhausted},
		"no UTF-8":        {"k\xff", errdefs.ErrInternal}, // the client's own gRPC refuses to send it
	} {
		t.Run(name, func(t *testing.T) {
			_, err := sn.Prepare(t.Context(), test.key, "layer")
			require.ErrorIs(t, err, test.class)
			_, err = sn.View(t.Context(), test.key, "layer")
			require.ErrorIs(t, err, test.class)
			require.ErrorIs(t, sn.Commit(t.Context(), test.key, "a"), test.class)
			for _, err := range []error{
				func() error { _, err := sn.Stat(t.Context(), test.key); return err }(),
				func() error { _, err := sn.Mounts(t.Context(), test.key); return err }(),
				func() error { _, err := sn.Prepare(t.Context(), "b", test.key+"k"); return err }(),
				sn.Commit(t.Context(), "b", test.key),
				sn.Remove(t.Context(), test.key),
			} {
				require.Error(t, err)
			}
			require.Equal(t, before, s.records(t))
			require.Equal(t, used, s.idsUsed(t))
		})
	}

	// Another gRPC implementation may send a key that is not UTF-8: key is field 2 of the request.
	err := conn.Invoke(t.Context(), "/containerd.services.snapshots.v1.Snapshots/Prepare", []byte("\x12\x02k\xff"), new([]byte), grpc.ForceCodec(verbatim{}))
	require.Equal(t, codes.Internal, status.Code(err))
	require.ErrorContains(t, errgrpc.ToNative(err), "UTF-8")
	require.Equal(t, before, s.records(t))
	require.Equal(t, used, s.idsUsed(t))
}

type verbatim struct{}

func (verbatim) Name() string { return "proto" }

func (verbatim) Marshal(v any) ([]byte, error) { return v.([]byte), nil } //nolint:errcheck // always of this type

func (verbatim) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = data //nolint:errcheck // always of this type
	return nil
}

// manyLabels returns n labels of the given size in bytes.
func manyLabels(n, bytes int) map[string]string {
	all := make(map[string]string)
	for i := range n {
		key := fmt.Sprint("containerd.io/snapshot/", i)
		all[key] = strings.Repeat("v", bytes-len(key))
	}
	return all
}

func TestManyLabels(t *testing.T) {
	s := serve(t, newBench(t, fakeConfig()))
	sn, _ := s.client(t)
	s.layer(t, "layer", "", "content")
	s.prepare(t, "a", "layer", labels("l", "1"))
	before, used := s.records(t), s.idsUsed(t)
	refused := manyLabels(1, 1<<20+1)
	_, err := sn.Prepare(t.Context(), "b", "layer", snapshots.WithLabels(refused))
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	_, err = sn.View(t.Context(), "b", "layer", snapshots.WithLabels(refused))
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	require.ErrorIs(t, sn.Commit(t.Context(), "b", "a", snapshots.WithLabels(refused)), errdefs.ErrInvalidArgument)
	_, err = sn.Update(t.Context(), snapshots.Info{Name: "a", Labels: refused})
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	require.Equal(t, before, s.records(t))
	require.Equal(t, used, s.idsUsed(t))

	many := manyLabels(10_000, 50)
	info, err := sn.Update(t.Context(), snapshots.Info{Name: "a", Labels: many}, "labels")
	require.NoError(t, err)
	require.Equal(t, many, info.Labels)
	_, err = sn.Update(t.Context(), snapshots.Info{Name: "a", Labels: map[string]string{"one": strings.Repeat("v", 600<<10)}}, "labels.one")
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument, "with the existing labels, they are too long")
}

// containerd's collector lists all snapshots, 100 in each message. The server splits a message that would
// exceed gRPC's limit, so that no client can make the list fail.
func TestListOfLargeRecords(t *testing.T) {
	s := serve(t, newBench(t, fakeConfig()))
	sn, _ := s.client(t)
	key := func(i int) string { return fmt.Sprintf("%0*d", metadata.MaxKeyLength, i) }
	s.prepare(t, "a", "")
	require.NoError(t, s.Commit(t.Context(), key(0), "a"))
	var all errgroup.Group
	const n = 210
	for i := range n {
		all.Go(func() error {
			_, err := sn.View(t.Context(), key(i+1), key(0), snapshots.WithLabels(manyLabels(15, 4096)))
			return err
		})
	}
	require.NoError(t, all.Wait())
	require.Len(t, names(t, sn), n+1)
}
