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
	release string // as uname -r says
	image   string // path of the bootable image
	modules string // directory that belongs at /lib/modules
}

// findKernel picks the kernel that was unpacked last.
func findKernel(cache string) (kernel, error) {
	images, err := filepath.Glob(filepath.Join(cache, "kernel", "*", "boot", "vmlinuz-*"))
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
		k := kernel{release: filepath.Base(dir), image: image, modules: filepath.Join(dir, "lib", "modules")}
		if info, err := os.Stat(filepath.Join(k.modules, k.release, "modules.dep")); err == nil {
			found = append(found, candidate{k, info.ModTime()})
		}
	}
	if len(found) == 0 {
		return kernel{}, fmt.Errorf("no kernel in %s: run integration/setup.sh first", filepath.Join(cache, "kernel"))
	}
	sort.Slice(found, func(i, j int) bool { return found[i].unpacked.After(found[j].unpacked) })
	return found[0].kernel, nil
}
