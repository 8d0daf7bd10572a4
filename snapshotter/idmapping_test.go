package snapshotter_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

func TestIDMappingThatNoKernelTakes(t *testing.T) {
	b := newBench(t, fakeConfig())
	ranges := func(n int) string {
		var lines []string
		for i := range n {
			lines = append(lines, fmt.Sprintf("%d:%d:1", 2*i, 3*i))
		}
		return strings.Join(lines, ",")
	}
	const good = "0:100000:65536"
	prepare := func(key, uids, gids string) error {
		_, err := b.Prepare(t.Context(), key, "", labels(snapshots.LabelSnapshotUIDMapping, uids, snapshots.LabelSnapshotGIDMapping, gids))
		return err
	}
	for name, mapping := range map[string]string{
		"empty range":               "0:1000:0",
		"beyond 32 bits":            "4294967296:0:1",
		"length beyond 32 bits":     "0:0:4294967296",
		"beyond 64 bits":            "0:0:99999999999999999999",
		"ends after the last id":    "1:0:4294967295",
		"no id on the host":         "0:4294967295:1",
		"overlap in the container":  "0:1000:10,9:2000:1",
		"overlap on the host":       "0:1000:10,100:1009:1",
		"more ranges than a kernel": ranges(341),
	} {
		require.ErrorIs(t, prepare("refused", mapping, good), errdefs.ErrInvalidArgument, name)
		require.ErrorIs(t, prepare("refused", good, mapping), errdefs.ErrInvalidArgument, name)
	}
	for i, mapping := range []string{good, "0:0:4294967295", "1000:0:1,0:1000:1", "4294967294:4294967294:1", ranges(340)} {
		require.NoError(t, prepare(fmt.Sprint(i), mapping, good), mapping)
	}
}

// The record of an unpack may have a mapping, from an older thinsnap's Prepare or from an Update.
func TestIDMappingInTheRecordOfAnUnpack(t *testing.T) {
	b := newBench(t, fakeConfig())
	b.prepare(t, unpackKey, "")
	const mapping = "0:1000:10"
	_, err := b.Update(t.Context(), snapshots.Info{Name: unpackKey, Labels: map[string]string{
		snapshots.LabelSnapshotUIDMapping: mapping, snapshots.LabelSnapshotGIDMapping: mapping,
	}})
	require.NoError(t, err)
	require.NotContains(t, b.options(t, unpackKey), "uidmap="+mapping)
}
