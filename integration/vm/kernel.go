package vm

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"time"
)

// kernel is an unpacked kernel package in the cache.
type kernel struct {
	release string // as printed by uname -r
	dir     string // the package, in the cache
	image   string // path of the bootable image
	modules string // directory for /lib/modules
}

// kernelSuite returns the Debian suite of the guest's kernel: $THINSNAP_KERNEL, or "" for the machine's own release.
func kernelSuite() string { return os.Getenv("THINSNAP_KERNEL") }

// kernelsDir returns the directory into which integration/setup.sh unpacks a suite's kernels.
func kernelsDir(cache, suite string) string {
	if suite != "" {
		suite = "-" + suite
	}
	return filepath.Join(cache, "kernel"+suite)
}

// Installed returns an error that names integration/setup.sh if no kernel for guests is unpacked.
func Installed() error {
	cache, err := CacheDir()
	if err != nil {
		return err
	}
	_, err = findKernel(cache, kernelSuite())
	return err
}

// findKernel returns the suite's kernel that was unpacked last.
func findKernel(cache, suite string) (kernel, error) {
	kernels := kernelsDir(cache, suite)
	images, err := filepath.Glob(filepath.Join(kernels, "*", "boot", "vmlinuz-*"))
	if err != nil {
		return kernel{}, err
	}
	type candidate struct {
		kernel
		unpacked time.Time
	}
	var found []candidate
	for _, image := range images {
		dir := filepath.Dir(filepath.Dir(image))
		k := kernel{release: filepath.Base(dir), dir: dir, image: image, modules: filepath.Join(dir, "lib", "modules")}
		if info, err := os.Stat(filepath.Join(k.modules, k.release, "modules.dep")); err == nil {
			found = append(found, candidate{k, info.ModTime()})
		}
	}
	if len(found) == 0 {
		return kernel{}, fmt.Errorf("no kernel in %s: run integration/setup.sh first", kernels)
	}
	sort.Slice(found, func(i, j int) bool { return found[i].unpacked.After(found[j].unpacked) })
	return found[0].kernel, nil
}
