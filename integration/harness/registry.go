package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
)

// StartRegistry serves the images on loopback, with its log in dir, and returns its address.
func StartRegistry(tools Tools, dir string) (p *Process, address string, err error) {
	if _, err := os.Stat(tools.Images); err != nil {
		return nil, "", fmt.Errorf("images are missing, run integration/image/build.sh: %w", err)
	}
	cmd := exec.Command(tools.Registry, "serve", tools.RegistryConfig)
	cmd.Env = append(os.Environ(), "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY="+tools.Images)
	// The configuration asks for port 0; the log has the kernel's choice.
	listening := regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`)
	p, err = Start(cmd, dir, "registry", func() bool {
		log, err := os.ReadFile(filepath.Join(dir, "registry.log"))
		if found := listening.FindSubmatch(log); err == nil && found != nil {
			address = string(found[1])
		}
		return address != ""
	})
	return p, address, err
}
