package images_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/powercut/content"
	"github.com/thinsnap/thinsnap/integration/powercut/images"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// TestImage: unpacking an image's layers gives its recorded content.
func TestImage(t *testing.T) {
	_, err := os.Stat("/bin/busybox")
	dmtest.RequireInstalled(t, err)
	server := httptest.NewServer(images.Registry{Seed: 1})
	defer server.Close()
	get := func(path string) []byte {
		response, err := http.Get(server.URL + path)
		require.NoError(t, err)
		defer response.Body.Close()
		require.Equal(t, http.StatusOK, response.StatusCode)
		body, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		return body
	}
	var manifest struct {
		Layers []struct{ Digest string }
	}
	require.NoError(t, json.Unmarshal(get("/v2/7/manifests/latest"), &manifest))
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o755))
	for _, layer := range manifest.Layers {
		unpack(t, dir, get("/v2/7/blobs/"+layer.Digest))
	}
	got, err := content.Digest(dir)
	require.NoError(t, err)
	image, err := images.New(1, 7)
	require.NoError(t, err)
	require.Equal(t, image.Digest, got)
}

func unpack(t *testing.T, dir string, layer []byte) {
	t.Helper()
	for r := tar.NewReader(bytes.NewReader(layer)); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		require.NoError(t, err)
		path := filepath.Join(dir, header.Name)
		switch header.Typeflag {
		case tar.TypeDir:
			require.NoError(t, os.Mkdir(path, 0o755))
		case tar.TypeSymlink:
			require.NoError(t, os.Symlink(header.Linkname, path))
		default:
			data, err := io.ReadAll(r)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(path, data, header.FileInfo().Mode()))
		}
	}
}
