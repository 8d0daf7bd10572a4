package snapshotter

import (
	"regexp"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/metadata"
)

// FuzzOptions: any label value is either refused, or gives a size in whole blocks that fits the kernel's
// offsets, and mount options that contain nothing but a mapping of numbers.
func FuzzOptions(f *testing.F) {
	f.Add("20GiB", "", "", "")
	f.Add("", "1048576", "0:1000:65536", "0:1000:65536,70000:5:1")
	f.Add("8EiB", "9223372036854775807", "0:0:1,suid", "0:0:1\n")
	f.Add("1e18", "-1", "0:0", ":::")
	inert := regexp.MustCompile(`^[ug]idmap=[0-9:,]+$`)
	f.Fuzz(func(t *testing.T, ours, theirs, uids, gids string) {
		o, err := parseOptions(t.Context(), "container", []snapshots.Opt{snapshots.WithLabels(map[string]string{
			LabelSize: ours, snapshots.LabelSnapshotMaxSize: theirs,
			snapshots.LabelSnapshotUIDMapping: uids, snapshots.LabelSnapshotGIDMapping: gids,
		})})
		if err != nil {
			require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
			return
		}
		require.Zero(t, o.size.bytes%sizeUnit)
		require.LessOrEqual(t, o.size.bytes, uint64(1)<<63-sizeUnit)
		require.Equal(t, o.size.bytes != 0 && ours == "", o.size.hint)
		if ours != "" {
			require.NotZero(t, o.size.bytes)
		}
		options := idMappingOptions(metadata.Snapshot{Labels: o.labels, Filesystem: filesystem.Ext4})
		require.Equal(t, uids != "", len(options) == 2)
		for _, option := range options {
			require.Regexp(t, inert, option)
			for one := range strings.SplitSeq(option[len("uidmap="):], ",") {
				require.Len(t, strings.Split(one, ":"), 3)
			}
		}
	})
}
