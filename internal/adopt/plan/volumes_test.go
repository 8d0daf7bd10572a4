package plan

import (
	"bytes"
	"os"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/internal/adopt/builtin"
	"github.com/thinsnap/thinsnap/internal/dmtest/thintools"
)

// TestInherited: a volume that was created empty has no block older than itself.
func TestInherited(t *testing.T) {
	for name, test := range map[string]struct {
		volume thintools.Volume
		parent string
		want   bool
	}{
		"empty":         {thintools.Volume{Created: 5}, "", false},
		"written":       {thintools.Volume{Created: 5, Mappings: []thinmeta.Mapping{{Time: 5}, {Virtual: 1, Data: 1, Time: 7}}}, "", false},
		"a copy":        {thintools.Volume{Created: 5, Mappings: []thinmeta.Mapping{{Time: 5}, {Virtual: 1, Data: 1, Time: 4}}}, "", true},
		"of the oldest": {thintools.Volume{Created: 1, Mappings: []thinmeta.Mapping{{}}}, "", true},
		"recorded":      {thintools.Volume{Created: 5, Mappings: []thinmeta.Mapping{{Time: 4}}}, "fc-snap-9", false},
		"reset times":   {thintools.Volume{Mappings: []thinmeta.Mapping{{}}}, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			test.volume.ID = 1
			image, err := os.ReadFile(thintools.Restore(t, 10, 4<<20, test.volume))
			require.NoError(t, err)
			m, err := thinmeta.Open(bytes.NewReader(image))
			require.NoError(t, err)
			g := &gatherer{ctx: t.Context(), input: input{databases: builtin.Databases{
				Pool: "fc", Snapshots: []builtin.Snapshot{{Key: "a", ID: 1, Kind: snapshots.KindActive}},
				Devices: []builtin.Device{{Name: "fc-snap-1", ID: 1, Bytes: mib, Parent: test.parent}},
			}, pool: poolInput{blockBytes: block}}}
			require.NoError(t, g.readVolumes(m, bytes.NewReader(make([]byte, mib))))
			require.Equal(t, test.want, g.volumes["fc-snap-1"].inherited)
		})
	}
}
