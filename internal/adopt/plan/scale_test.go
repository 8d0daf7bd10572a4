package plan

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/internal/dmtest/thintools"
	"github.com/thinsnap/thinsnap/metadata"
)

type countingReader struct {
	io.ReaderAt
	reads int
}

func (c *countingReader) ReadAt(p []byte, offset int64) (int, error) {
	c.reads++
	return c.ReaderAt.ReadAt(p, offset)
}

// TestTenThousandSnapshots: 50 images of ten layers, with containers. The number of reads is
// proportional to the number of snapshots.
func TestTenThousandSnapshots(t *testing.T) {
	const images, layers, all = 50, 10, 10_000
	w := newWorld()
	*w = world{in: w.in, names: w.names}
	w.in.databases.Snapshots, w.in.databases.Devices = nil, nil
	clear(w.names)
	var volumes []thintools.Volume
	next := uint64(1)
	add := func(kind snapshots.Kind, key, parent string) {
		w.add(kind, key, parent, "ext4")
		d := w.in.databases.Devices[len(w.in.databases.Devices)-1]
		v := thintools.Volume{ID: d.ID, Created: uint32(len(volumes) + 1), Snapshotted: uint32(len(volumes) + 1)}
		if parent != "" {
			v.Mappings = append(v.Mappings, volumes[w.snapshot(parent).ID-1].Mappings...)
		} else {
			v.Created, v.Mappings = 0, []thinmeta.Mapping{{}} // the superblock, shared by all
		}
		v.Mappings = append(v.Mappings, thinmeta.Mapping{Virtual: uint64(len(v.Mappings)), Data: next, Time: v.Created})
		next++
		volumes = append(volumes, v)
	}
	for i := range images {
		parent := ""
		for l := range layers {
			key := fmt.Sprintf("k8s.io/%d/layer-%d-%d", l, i, l)
			add(snapshots.KindCommitted, key, parent)
			parent = key
		}
	}
	for i := images * layers; i < all; i++ {
		add(snapshots.KindActive, fmt.Sprintf("k8s.io/1/box-%d", i), fmt.Sprintf("k8s.io/9/layer-%d-9", i%images))
	}
	data := make([]byte, block)
	binary.LittleEndian.PutUint16(data[1024+0x38:], 0xEF53)
	binary.LittleEndian.PutUint16(data[1024+0x3A:], 1)
	binary.LittleEndian.PutUint32(data[1024+0x18:], 2)
	copy(data[1024+0x68:], "UUID of all ext4")
	image, err := os.ReadFile(thintools.Restore(t, all+1, 128<<20, volumes...))
	require.NoError(t, err)

	w.sort()
	onMetadata, onData := &countingReader{ReaderAt: bytes.NewReader(image)}, &countingReader{ReaderAt: bytes.NewReader(data)}
	m, err := thinmeta.Open(onMetadata)
	require.NoError(t, err)
	begun := time.Now()
	g := &gatherer{ctx: t.Context(), input: w.in}
	require.NoError(t, g.readVolumes(m, onData))
	read := time.Since(begun)
	p := judge(g.input)
	t.Logf("read in %v with %d reads of metadata and %d of data; judged in %v", read, onMetadata.reads, onData.reads,
		time.Since(begun)-read)
	require.True(t, p.Possible(), "%v", p.Obstacles)
	require.Len(t, p.Adoption.Snapshots, all)
	require.Empty(t, p.Adoption.Kept)
	require.LessOrEqual(t, onData.reads, all)
	require.LessOrEqual(t, onMetadata.reads, 25*all, "without the blocks that the pool's reader keeps")
	require.Equal(t, all, strings.Count(fmt.Sprint(fates(p)), string(Adopted)))
	require.NoError(t, newAdoptable(t).store.Update(t.Context(), func(tx *metadata.Tx) error { return tx.Adopt(p.Adoption) }))
}
