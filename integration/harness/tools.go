package harness

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/thinsnap/thinsnap/integration/vm"
)

// CellAttribute is the key of the attribute (see [testing.T.Attr]) of a test that is a cell of the table in
// docs/support.md: client, version and kernel, separated by tabs. integration/matrix reads it.
const CellAttribute = "support"

// UserMode is the suffix of the version of a user-mode kernel, which has no hardware.
const UserMode = " (user mode)"

// Tools has the paths of the programs.
type Tools struct {
	// Releases of containerd to test with, the newest first.
	Releases []Release
	// Containerd17 and MoreReleases are releases that only `make test-all` and `make matrix` build. They need not
	// exist.
	Containerd17 Release
	MoreReleases []Release
	// Docker and Docker26 are the roots of Docker's packages, which only `make test-all` and `make matrix` unpack. They
	// need not exist.
	Docker, Docker26 string

	Nerdctl  string
	Runc     string
	Registry string
	// Prometheus is the server.
	Prometheus string
	// CNI is the directory of the network plugins.
	CNI string
	// RegistryConfig is the registry's configuration file.
	RegistryConfig string
	// Images is the registry's storage, which integration/image/build.sh fills.
	Images string
	// LargeImages is the registry's storage that "build.sh large" fills.
	LargeImages string
	// Thinsnap is $THINSNAP_BINARY, else bin/thinsnap in the repository. It need not exist.
	Thinsnap string
}

// Release is a release of containerd: the directory of its programs, and their features.
type Release struct {
	Name string
	Dir  string
	// ConfigVersion of the configuration file.
	ConfigVersion int
	// Transfer: the daemon itself can pull images, which ctr asks for with --local=false.
	Transfer bool
	// DifferProxies: the differ can be a program of its own.
	DifferProxies bool
	// RemapIDs: the daemon asks proxy snapshotters for ID-mapped mounts.
	RemapIDs bool
}

// FindTools finds the programs in the cache. repository is the root of the source tree. The error names each missing
// program, and the script that installs it.
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
			{Name: "containerd-2.4", Dir: filepath.Join(cache, "bin"), ConfigVersion: 4, Transfer: true,
				DifferProxies: true, RemapIDs: true},
			{Name: "containerd-1.6", Dir: filepath.Join(debian, "containerd/usr/bin"), ConfigVersion: 2},
		},
		Containerd17: Release{Name: "containerd-1.7", Dir: filepath.Join(cache, "containerd-1.7"), ConfigVersion: 2,
			Transfer: true, DifferProxies: true},
		Docker:         filepath.Join(debian, "docker"),
		Docker26:       filepath.Join(debian, "docker-26"),
		Nerdctl:        filepath.Join(cache, "bin/nerdctl"),
		Runc:           filepath.Join(debian, "runc/usr/sbin/runc"),
		Registry:       filepath.Join(debian, "docker-registry/usr/bin/docker-registry"),
		Prometheus:     filepath.Join(debian, "prometheus/usr/bin/prometheus"),
		CNI:            filepath.Join(debian, "containernetworking-plugins/usr/lib/cni"),
		RegistryConfig: filepath.Join(repository, "integration/image/registry.yml"),
		Images:         filepath.Join(cache, "image/registry"),
		LargeImages:    filepath.Join(cache, "image-large/registry"),
		Thinsnap:       os.Getenv("THINSNAP_BINARY"),
	}
	tools.MoreReleases = []Release{
		{Name: "containerd-2.3", Dir: filepath.Join(cache, "containerd-2.3"), ConfigVersion: 4, Transfer: true,
			DifferProxies: true, RemapIDs: true},
		{Name: "containerd-2.1", Dir: filepath.Join(cache, "containerd-2.1"), ConfigVersion: 3, Transfer: true,
			DifferProxies: true, RemapIDs: true},
		tools.Containerd17,
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
		return Tools{}, fmt.Errorf("programs are missing, run integration/setup.sh: %w", err)
	}
	return tools, nil
}
