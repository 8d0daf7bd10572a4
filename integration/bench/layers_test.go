package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/internal/dmtest/dmpool"
)

// benchLayers unpacks the layers of a pull one after the other, step by step. The floor does it without containerd and
// a snapshotter: into directories, as overlayfs has them, and into flushed thin volumes.
func benchLayers(s *suite) {
	s.report.Note("layers: the floor unpacks decompressed layers. Directories are not flushed, thin volumes are.")
	image := s.images.Layers16
	s.forget(image)
	require.NoError(s.b, s.pull(s.ctx, image, ""))
	store := contentproxy.NewContentStore(contentapi.NewContentClient(s.conn))
	layers := s.layersOf(store, image)
	tars := s.decompressed(store, layers)
	pool := s.newLayerPool()
	for range 3 {
		rest()
		s.time("16 layers into directories", Floor, func() error { return s.intoDirectories(tars) })
		rest()
		s.time("16 layers into thin volumes", Floor, func() error { return pool.unpack(s, tars) })
	}
	s.inTurnSlow(3, 3, func(t *target) {
		rest()
		s.time("16 layers by containerd", t.name, func() error { return s.unpackLayers(t, layers) })
		s.end()
	})
	s.forget(image)
}

// layersOf returns the layers of a fetched image for one platform.
func (s *suite) layersOf(store content.Store, image string) []ocispec.Descriptor {
	found, err := imagesapi.NewImagesClient(s.conn).Get(s.ctx, &imagesapi.GetImageRequest{Name: image})
	require.NoError(s.b, err)
	target := found.Image.Target
	encoded, err := content.ReadBlob(s.ctx, store, ocispec.Descriptor{Digest: digest.Digest(target.Digest), Size: target.Size})
	require.NoError(s.b, err)
	var manifest ocispec.Manifest
	require.NoError(s.b, json.Unmarshal(encoded, &manifest))
	require.Len(s.b, manifest.Layers, 16)
	return manifest.Layers
}

func (s *suite) decompressed(store content.Store, layers []ocispec.Descriptor) (tars [][]byte) {
	for _, layer := range layers {
		blob, err := content.ReadBlob(s.ctx, store, layer)
		require.NoError(s.b, err)
		stream, err := compression.DecompressStream(bytes.NewReader(blob))
		require.NoError(s.b, err)
		tar, err := io.ReadAll(stream)
		require.NoError(s.b, err)
		require.NoError(s.b, stream.Close())
		tars = append(tars, tar)
	}
	return tars
}

// unpackLayers unpacks layers as containerd does in a pull.
func (s *suite) unpackLayers(t *target, layers []ocispec.Descriptor) error {
	differ, parent := diffapi.NewDiffClient(s.conn), ""
	for _, layer := range layers {
		// thinsnap recognizes an unpack by its key.
		key, name := s.later(t, fmt.Sprintf("extract-%s %s", s.key(), layer.Digest)), s.later(t, s.key())
		var mounts []mount.Mount
		s.time("Prepare of a layer", t.name, func() (err error) {
			mounts, err = t.Prepare(s.ctx, key, parent, keep)
			return err
		})
		s.time("Apply of a layer", t.name, func() error {
			_, err := differ.Apply(s.ctx, &diffapi.ApplyRequest{
				Diff:   &types.Descriptor{MediaType: layer.MediaType, Digest: layer.Digest.String(), Size: layer.Size},
				Mounts: mount.ToProto(mounts),
			})
			return err
		})
		s.time("Commit of a layer", t.name, func() error { return t.Commit(s.ctx, name, key, keep) })
		parent = name
	}
	return nil
}

// intoDirectories unpacks each layer into a directory of the disk.
func (s *suite) intoDirectories(tars [][]byte) error {
	root, err := os.MkdirTemp(s.disk, "layers-")
	if err != nil {
		return err
	}
	s.b.Cleanup(func() { require.NoError(s.b, os.RemoveAll(root)) })
	for i, tar := range tars {
		dir := filepath.Join(root, fmt.Sprint(i))
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		s.time("untar of a layer into a directory", Floor, func() error { return s.untar(dir, tar) })
	}
	return nil
}

// untar unpacks a layer. Whiteouts are those of overlayfs, which do not need the lower layers.
func (s *suite) untar(dir string, tar []byte) error {
	_, err := archive.Apply(s.ctx, dir, bytes.NewReader(tar), archive.WithConvertWhiteout(archive.OverlayConvertWhiteout))
	return err
}

// layerPool is a pool whose volume 0 has an empty file system.
type layerPool struct {
	*dmpool.Pool
	next thin.ID
	dir  string // where volumes are mounted
}

func (s *suite) newLayerPool() *layerPool {
	p := &layerPool{next: 1, dir: s.b.TempDir(), Pool: dmpool.NewWith(s.b, dmpool.Options{
		Dir: s.dir("layers"), DataBytes: 4 << 30, MetadataBytes: 64 * mib, ZeroBlocks: true,
	})}
	require.NoError(s.b, p.CreateThin(0))
	device, err := p.Activate(p.Name()+"-base", 0, baseBytes, false)
	require.NoError(s.b, err)
	path, err := blockdev.Path(device.Number())
	require.NoError(s.b, err)
	require.NoError(s.b, filesystem.Make(s.ctx, path, filesystem.Ext4, nil))
	require.NoError(s.b, filesystem.InitRoot(path, filesystem.Ext4))
	require.NoError(s.b, p.Control.Deactivate(device.Name))
	return p
}

// unpack unpacks layers with all that a durable layer in a thin volume needs of the kernel, and nothing else.
func (p *layerPool) unpack(s *suite, tars [][]byte) error {
	origin := thin.ID(0)
	for _, tar := range tars {
		id := p.next
		p.next++
		var device devmapper.Device
		s.time("a thin volume created and activated", Floor, func() (err error) {
			if err = p.CreateSnap(id, origin); err != nil {
				return err
			}
			device, err = p.Activate(fmt.Sprintf("%s-%d", p.Name(), id), id, baseBytes, false)
			return err
		})
		path, err := blockdev.Path(device.Number())
		if err != nil {
			return err
		}
		volume := mount.Mount{Type: filesystem.Ext4, Source: path, Options: []string{
			filesystem.OnError, filesystem.NoLazyInit, "noload", "nobarrier",
		}}
		s.time("a thin volume mounted", Floor, func() error { return volume.Mount(p.dir) })
		s.time("untar of a layer into a thin volume", Floor, func() error { return s.untar(p.dir, tar) })
		s.time("a thin volume unmounted and flushed", Floor, func() error {
			if err := mount.UnmountAll(p.dir, 0); err != nil {
				return err
			}
			return blockdev.Flush(path)
		})
		s.time("a thin volume deactivated", Floor, func() error { return p.Control.Deactivate(device.Name) })
		origin = id
	}
	return nil
}
