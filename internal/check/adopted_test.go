package check_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/internal/check"
	"github.com/thinsnap/thinsnap/metadata"
)

// adoptedWorld is the world in a foreign pool with adopted snapshots, a leftover 50, and a foreign
// volume 51.
func adoptedWorld() (check.Input, contents) {
	in, c := world()
	in.Records.Pool = metadata.PoolRecord{Mode: metadata.ModeExisting, Complete: true, Existing: metadata.ExistingPool{
		Adopted: []metadata.AdoptedVolume{{VolumeID: 2, Filesystem: "ext4", UUID: "u"}},
	}}
	in.Records.Bases, in.Records.Snapshots[0].Base = nil, 0
	delete(c, 1)
	in.Records.Leases = []metadata.LeaseRecord{{First: metadata.FirstInForeign, Last: metadata.FirstInForeign + 63}}
	in.Records.Next = metadata.FirstInForeign + 64
	in.Records.Kept = []metadata.KeptRecord{{VolumeID: 50}}
	c[50] = []thinmeta.Mapping{{Virtual: 1 << 20, Data: 90, Time: 1}}
	c[51] = []thinmeta.Mapping{{Virtual: 1 << 20, Data: 91, Time: 1}}
	return in, c
}

// TestAdopted: adopted volumes are compared as others are; the pool's other volumes with low ids
// are not.
func TestAdopted(t *testing.T) {
	in, _ := adoptedWorld()
	r := compare(t, in)
	require.Empty(t, r.Findings)
	require.Equal(t, 3, r.Examined.Volumes)
	for name, test := range map[string]struct {
		change func(c contents)
		kind   check.Kind
		device uint32
	}{
		"missing":        {func(c contents) { delete(c, 3) }, check.KindMissing, 3},
		"another parent": {func(c contents) { c[3][1].Data = 99 }, check.KindParent, 3},
		"unowned": {func(c contents) {
			c[metadata.FirstInForeign+70] = nil
		}, check.KindUnowned, metadata.FirstInForeign + 70},
	} {
		t.Run(name, func(t *testing.T) {
			in, c := adoptedWorld()
			test.change(c)
			r := compare(t, in)
			require.Len(t, r.Findings, 1)
			require.Equal(t, test.kind, r.Findings[0].Kind)
			require.Equal(t, test.device, r.Findings[0].DeviceID)
		})
	}
}
