package harness

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/thinsnap/thinsnap/integration/vm"
)

// Tools says where the programs are.
type Tools struct {
	// Releases of containerd to test with, the newest first.
	Releases []Release
	Nerdctl  string
	Runc     string
	Registry string
	// Prometheus is the server.
	Prometheus string
	// RegistryConfig is the registry's configuration file.
	RegistryConfig string
	// Images is the registry's storage, as integration/image/build.sh has filled it.
	Images string
	// Thinsnap is $THINSNAP_BINARY, else bin/thinsnap in the repository. It need not be there.
	Thinsnap string
}

// Release is a release of containerd: the directory of its programs and what they understand.
type Release struct {
	Name string
	Dir  string
	// ConfigVersion of the configuration file.
	ConfigVersion int
	// Transfer says that images can be pulled by the daemon itself, and that ctr does so unless told otherwise.
	Transfer bool
	// RemapIDs says that it asks proxy snapshotters for mounts with other owners.
	RemapIDs bool
}

// FindTools looks into the cache; repository is the root of the source tree. What is missing is an error that says how
// to get it.
func FindTools(repository string) (Tools, error) {
	cache, err := vm.CacheDir()
	if err != nil {
		return Tools{}, err
	}
	if repository, err = filepath.Abs(repository); err != nil {
		return Tools{}, err
	}
	debian := filepath.Join(cache, "debian")
	tools := Tools{
		Releases: []Release{
			{Name: "containerd-2.4", Dir: filepath.Join(cache, "bin"), ConfigVersion: 4, Transfer: true, RemapIDs: true},
			{Name: "containerd-1.6", Dir: filepath.Join(debian, "containerd/usr/bin"), ConfigVersion: 2},
		},
		Nerdctl:        filepath.Join(cache, "bin/nerdctl"),
		Runc:           filepath.Join(debian, "runc/usr/sbin/runc"),
		Registry:       filepath.Join(debian, "docker-registry/usr/bin/docker-registry"),
		Prometheus:     filepath.Join(debian, "prometheus/usr/bin/prometheus"),
		RegistryConfig: filepath.Join(repository, "integration/image/registry.yml"),
		Images:         filepath.Join(cache, "image/registry"),
		Thinsnap:       os.Getenv("THINSNAP_BINARY"),
	}
	if tools.Thinsnap == "" {
		tools.Thinsnap = filepath.Join(repository, "bin/thinsnap")
	}
	needed := []string{tools.Nerdctl, tools.Runc, tools.Registry, tools.RegistryConfig}
	for _, release := range tools.Releases {
		for _, program := range []string{"containerd", "ctr", "containerd-shim-runc-v2"} {
			needed = append(needed, filepath.Join(release.Dir, program))
		}
	}
	for _, path := range needed {
		_, statErr := os.Stat(path)
		err = errors.Join(err, statErr)
	}
	if err != nil {
		return Tools{}, fmt.Errorf("programs are missing, integration/setup.sh brings them: %w", err)
	}
	if _, err := os.Stat(tools.Images); err != nil {
		return Tools{}, fmt.Errorf("there are no images, integration/image/build.sh makes them: %w", err)
	}
	return tools, nil
}
