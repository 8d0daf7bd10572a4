package adoption

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// TestManyImages adopts a node with 50 images, and logs the times.
func TestManyImages(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	dmtest.RequireThorough(t)
	tools, err := harness.FindTools("../..")
	require.NoError(t, err)
	const images, shared = 50, 3
	n := newNode(t, tools, variant{release: tools.Releases[0], filesystem: "ext4", skipsZeroing: true, small: true})
	archive := filepath.Join(t.TempDir(), "images.tar")
	for first := 0; first < images; first += 10 { // one command has a time limit
		require.NoError(t, os.WriteFile(archive, tenImages(t, first, shared), 0o600))
		n.Ctr(t, "images", "import", "--snapshotter", harness.DevmapperName, archive)
	}
	require.Len(t, n.Snapshots(t, harness.DevmapperName), images+shared)
	n.newThinsnap(t)
	want := n.trees(t, harness.DevmapperName)
	n.stop(t)

	r, err := n.plan(t)
	require.NoError(t, err)
	// Volumes of the Views for reading the trees may still exist, because they are removed asynchronously.
	require.GreaterOrEqual(t, len(r.Snapshots), images+shared)
	n.adopt(t)
	n.startAdopted(t)
	want.requireSame(t, n.trees(t, harness.ThinsnapName))
	n.removeAll(t, harness.ThinsnapName)
	n.removeLeftovers(t)
	n.requireAsBefore(t)
}

// tenImages returns an OCI archive of images that share all layers but one.
func tenImages(t *testing.T, first, shared int) []byte {
	t.Helper()
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	written := make(map[digest.Digest]bool)
	put := func(mediaType string, content []byte) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(content), Size: int64(len(content))}
		if written[d.Digest] {
			return d
		}
		written[d.Digest] = true
		writeFile(t, w, "blobs/sha256/"+d.Digest.Encoded(), content)
		return d
	}
	encode := func(v any) []byte {
		content, err := json.Marshal(v)
		require.NoError(t, err)
		return content
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for i := first; i < first+10; i++ {
		config := ocispec.Image{
			Platform: ocispec.Platform{Architecture: "amd64", OS: "linux"}, RootFS: ocispec.RootFS{Type: "layers"},
		}
		manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
		for l := range shared + 1 {
			dir := fmt.Sprintf("shared-%d", l)
			if l == shared {
				dir = fmt.Sprintf("image-%d", i)
			}
			d := put(ocispec.MediaTypeImageLayer, layerWith(t, dir))
			manifest.Layers = append(manifest.Layers, d)
			config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, d.Digest)
		}
		manifest.Config = put(ocispec.MediaTypeImageConfig, encode(config))
		d := put(ocispec.MediaTypeImageManifest, encode(manifest))
		d.Annotations = map[string]string{"io.containerd.image.name": fmt.Sprintf("example.com/image-%d:latest", i)}
		index.Manifests = append(index.Manifests, d)
	}
	writeFile(t, w, "index.json", encode(index))
	writeFile(t, w, "oci-layout", encode(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}))
	require.NoError(t, w.Close())
	return archive.Bytes()
}

// layerWith returns a layer with some files in a directory.
func layerWith(t *testing.T, dir string) []byte {
	t.Helper()
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for f := range 10 {
		name := fmt.Sprintf("%s/file-%d", dir, f)
		writeFile(t, w, name, bytes.Repeat([]byte(name), 1000))
	}
	require.NoError(t, w.Close())
	return layer.Bytes()
}

func writeFile(t *testing.T, w *tar.Writer, name string, content []byte) {
	t.Helper()
	require.NoError(t, w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}))
	_, err := io.Copy(w, bytes.NewReader(content))
	require.NoError(t, err)
}
