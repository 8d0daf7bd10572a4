package snapshotter_test

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// hostile returns names that are special to shells, file systems, mount options, SQL, printf and terminals.
func hostile() []string {
	return []string{
		"../../../../etc/passwd", "/dev/sda", ".", "..", "a/../b", "$(reboot)", "`reboot`", "; rm -rf / #", "a b\tc\nd", "-rf", "--help",
		"*", "?[a]{b,c}", "a,suid,dev", "a=b", "\\", "'\"", "%s%n%x", "\x00", "a\x00b", "a\xff\xfe", "\u202e", "\x1b[2J", "|cat", "&", ">x", "~",
		strings.Repeat("k", metadata.MaxKeyLength),
	}
}

// TestNamesReachNothing: keys and labels are stored unchanged, and appear in no path, device name or mount
// option. These come from the ids of volumes.
func TestNamesReachNothing(t *testing.T) {
	b := newBench(t, fakeConfig())
	inert := regexp.MustCompile(`^/dev/mapper/[a-z]+-snap-[0-9]+$`)
	harmless := func(mounts []mount.Mount, err error) {
		t.Helper()
		require.NoError(t, err)
		require.Len(t, mounts, 1)
		require.Regexp(t, inert, mounts[0].Source)
		require.Equal(t, "ext4", mounts[0].Type)
		require.Empty(t, mounts[0].Target)
		require.Subset(t, []string{"rw", "ro", "noload", "nobarrier", "errors=remount-ro", "noinit_itable"}, mounts[0].Options)
	}
	parent := ""
	for n, name := range hostile() {
		if len(name) == metadata.MaxKeyLength {
			name = name[:len(name)-1] // the committed snapshot has another name
		}
		label := snapshots.WithLabels(map[string]string{name: name, "containerd.io/snapshot/" + name: name})
		harmless(b.Prepare(t.Context(), name, parent, label))
		harmless(b.Mounts(t.Context(), name))
		info, err := b.Stat(t.Context(), name)
		require.NoError(t, err)
		require.Equal(t, name, info.Labels[name])
		committed := name + "'"
		require.NoError(t, b.Commit(t.Context(), committed, name, label))
		harmless(b.View(t.Context(), fmt.Sprint("view ", n), committed, label))
		parent = committed
	}
}

func TestKeyThatIsTooLong(t *testing.T) {
	b := newBench(t, fakeConfig())
	before := b.pool.IDs()
	long := strings.Repeat("k", metadata.MaxKeyLength+1)
	_, err := b.Prepare(t.Context(), long, "")
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	_, err = b.View(t.Context(), long, "")
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	require.Subset(t, before, b.pool.IDs(), "no volume was created for it")
}

func TestLabelsThatAreRefused(t *testing.T) {
	many := make(map[string]string)
	for n := range 10_000 {
		many[fmt.Sprintf("label-%d", n)] = strings.Repeat("v", 50)
	}
	for name, bad := range map[string]map[string]string{
		"too much":      {"a": strings.Repeat("v", 1<<20)},
		"mount options": {snapshots.LabelSnapshotUIDMapping: "0:0:1,suid", snapshots.LabelSnapshotGIDMapping: "0:0:1"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, fakeConfig())
			b.prepare(t, "k", "", snapshots.WithLabels(many))
			ways := map[string]func(context.Context) error{
				"Prepare": func(ctx context.Context) error {
					_, err := b.Prepare(ctx, "new", "", snapshots.WithLabels(bad))
					return err
				},
				"View": func(ctx context.Context) error {
					_, err := b.View(ctx, "new", "", snapshots.WithLabels(bad))
					return err
				},
				"Commit": func(ctx context.Context) error { return b.Commit(ctx, "new", "k", snapshots.WithLabels(bad)) },
				"Update": func(ctx context.Context) error {
					_, err := b.Update(ctx, snapshots.Info{Name: "k", Labels: bad})
					return err
				},
			}
			for way, try := range ways {
				require.ErrorIs(t, try(t.Context()), errdefs.ErrInvalidArgument, way)
			}
			_, err := b.Stat(t.Context(), "new")
			require.ErrorIs(t, err, errdefs.ErrNotFound)
			info, err := b.Stat(t.Context(), "k")
			require.NoError(t, err)
			require.Equal(t, many, info.Labels)
			require.NoError(t, b.Commit(t.Context(), "layer", "k", snapshots.WithLabels(map[string]string{snapshotter.LabelSize: "1g"})))
		})
	}
}
