package harness

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

// Images are the full names of the tests' images.
type Images struct {
	// Debian is a real system with files of every kind, in five layers.
	Debian string
	// Layers16 is a real system too, in 16 layers of the same size.
	Layers16 string
	// Busybox is small, in two layers.
	Busybox string
}

// StartRegistry serves the images on loopback.
func StartRegistry(t testing.TB, tools Tools) Images {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command(tools.Registry, "serve", tools.RegistryConfig)
	cmd.Env = append(os.Environ(), "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY="+tools.Images)
	// The configuration asks for port 0; the log says which the kernel picked.
	listening := regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`)
	var address string
	start(t, t, dir, "registry", cmd, func() bool {
		log, err := os.ReadFile(filepath.Join(dir, "registry.log"))
		if found := listening.FindSubmatch(log); err == nil && found != nil {
			address = string(found[1])
		}
		return address != ""
	})
	return Images{
		Debian:   address + "/debian:thinsnap",
		Layers16: address + "/layers16:thinsnap",
		Busybox:  address + "/busybox:thinsnap",
	}
}
