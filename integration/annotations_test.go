package integration

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/snapshotter"
)

// testAnnotations: an image's annotations change neither the size of its layers nor the owners of their files, because
// other images share them.
func testAnnotations(t *testing.T, b *testbed) {
	address, name, _ := strings.Cut(b.images.Busybox, "/")
	repository, tag, _ := strings.Cut(name, ":")
	registry := httptest.NewServer(annotator{registry: "http://" + address, tag: tag, annotations: map[string]string{
		snapshotter.LabelSize:             "16MiB",
		snapshots.LabelSnapshotMaxSize:    "-1",
		snapshots.LabelSnapshotUIDMapping: "1000:0:1,0:1000:1",
		snapshots.LabelSnapshotGIDMapping: "1000:0:1,0:1000:1",
	}})
	defer registry.Close()
	image := strings.TrimPrefix(registry.URL, "http://") + "/" + repository + ":" + tag
	b.Pull(t, b.snapshotter, image)
	b.Pull(t, b.snapshotter, b.images.Busybox)
	require.Len(t, b.Snapshots(t, b.snapshotter), 2, "the two images have the same layers")
	b.MountImage(t, b.snapshotter, b.images.Busybox, func(dir string) {
		info, err := os.Stat(filepath.Join(dir, "bin/busybox"))
		require.NoError(t, err)
		stat, ok := info.Sys().(*syscall.Stat_t)
		require.True(t, ok)
		require.Zero(t, stat.Uid)
		require.Zero(t, stat.Gid)
		var fs unix.Statfs_t
		require.NoError(t, unix.Statfs(dir, &fs))
		require.Greater(t, fs.Blocks*uint64(fs.Bsize), uint64(1<<30), "the file system has the configured size")
	})
	b.RemoveImage(t, image)
	b.RemoveImage(t, b.images.Busybox)
}

// annotator is a registry in front of another one. It adds annotations to all layers of an image.
type annotator struct {
	registry, tag string
	annotations   map[string]string
}

func (a annotator) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	path := req.URL.Path
	isManifest := strings.Contains(path, "/manifests/")
	if isManifest { // also if requested by digest: the image has only one manifest
		path = path[:strings.LastIndex(path, "/")+1] + a.tag
	}
	get, err := http.NewRequestWithContext(req.Context(), http.MethodGet, a.registry+path, nil)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	get.Header = req.Header
	response, err := http.DefaultClient.Do(get)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && isManifest && response.StatusCode == http.StatusOK {
		body, err = a.annotate(body)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	w.Header().Set("Content-Type", response.Header.Get("Content-Type"))
	if response.StatusCode != http.StatusOK {
		w.WriteHeader(response.StatusCode)
		_, _ = w.Write(body)
		return
	}
	w.Header().Set("Docker-Content-Digest", fmt.Sprintf("sha256:%x", sha256.Sum256(body)))
	http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(body))
}

func (a annotator) annotate(manifest []byte) ([]byte, error) {
	var content map[string]any
	if err := json.Unmarshal(manifest, &content); err != nil {
		return nil, err
	}
	layers, ok := content["layers"].([]any)
	if !ok {
		return nil, fmt.Errorf("a manifest without layers: %s", manifest)
	}
	for _, l := range layers {
		if layer, ok := l.(map[string]any); ok {
			layer["annotations"] = a.annotations
		}
	}
	return json.Marshal(content)
}
