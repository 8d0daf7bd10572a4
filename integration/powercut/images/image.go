// Package images makes small random images, and serves them like a registry. Their content is known without unpacking
// them.
package images

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"github.com/thinsnap/thinsnap/integration/powercut/content"
)

// Image is an image of some layers. The first has a shell.
type Image struct {
	// Top is the key of the snapshot of all layers.
	Top string
	// Digest is the content.Digest of all its files.
	Digest string

	manifest []byte
	blobs    map[string][]byte // by digest
}

// shell is a static program of Debian's package busybox-static.
const shell = "/bin/busybox"

// Media types of an image with uncompressed layers.
const (
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	configType   = "application/vnd.oci.image.config.v1+json"
	layerType    = "application/vnd.oci.image.layer.v1.tar"
)

type descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int    `json:"size"`
}

// New makes the image of a seed and a number, always the same.
func New(seed, number uint64) (*Image, error) {
	random := rand.New(rand.NewPCG(seed, number))
	image := &Image{blobs: make(map[string][]byte)}
	files := make(content.Files)
	var layers []descriptor
	var diffs []string
	for n := range 3 + random.IntN(2) {
		blob, err := layer(random, files, n == 0)
		if err != nil {
			return nil, err
		}
		d := image.add(layerType, blob)
		layers = append(layers, d)
		diffs = append(diffs, d.Digest)
		// The chain of layers (OCI image specification, "Layer ChainID").
		if n == 0 {
			image.Top = d.Digest
		} else {
			image.Top = digest([]byte(image.Top + " " + d.Digest))
		}
	}
	config, err := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux",
		"config": map[string]any{"Env": []string{"PATH=/bin"}, "Cmd": []string{"/bin/sh"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffs},
	})
	if err != nil {
		return nil, fmt.Errorf("make an image: %w", err)
	}
	image.manifest, err = json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": manifestType, "config": image.add(configType, config), "layers": layers,
	})
	image.Digest = files.Digest()
	return image, err
}

func (i *Image) add(mediaType string, blob []byte) descriptor {
	d := descriptor{MediaType: mediaType, Digest: digest(blob), Size: len(blob)}
	i.blobs[d.Digest] = blob
	return d
}

func digest(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

// layer makes a tar file with some random files, and adds them to files.
func layer(random *rand.Rand, files content.Files, first bool) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	add := func(name string, kind byte, mode os.FileMode, data []byte, target string) error {
		files.Add(name, mode, data)
		err := w.WriteHeader(&tar.Header{
			Name: name, Typeflag: kind, Mode: int64(mode.Perm()), Size: int64(len(data)), Linkname: target,
			ModTime: time.Unix(1, 0),
		})
		if err != nil {
			return err
		}
		_, err = w.Write(data)
		return err
	}
	if first { // the same in all images
		program, err := os.ReadFile(shell)
		if err != nil {
			return nil, fmt.Errorf("read a shell (Debian package busybox-static): %w", err)
		}
		files.Add(".", os.ModeDir|0o755, nil)
		for _, dir := range []string{"bin", "dev", "etc", "proc", "run", "sys", "tmp", "data"} {
			if err := add(dir, tar.TypeDir, os.ModeDir|0o755, nil, ""); err != nil {
				return nil, err
			}
		}
		if err := add("bin/busybox", tar.TypeReg, 0o755, program, ""); err != nil {
			return nil, err
		}
		for _, name := range []string{"sh", "sync"} {
			if err := add("bin/"+name, tar.TypeSymlink, os.ModeSymlink|0o777, nil, "busybox"); err != nil {
				return nil, err
			}
		}
	}
	for n := 5 + random.IntN(20); n > 0 && !first; n-- {
		data := make([]byte, random.IntN(1<<15))
		_, _ = content.Random(random).Read(data) // never fails
		if err := add(fmt.Sprintf("data/%d", random.IntN(40)), tar.TypeReg, 0o644, data, ""); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("make a layer: %w", err)
	}
	return out.Bytes(), nil
}
