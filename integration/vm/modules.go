package vm

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// bootModules are the modules that the root file system and the agent's port need; modprobe finds the others on the
// root.
func bootModules() []string {
	return []string{"virtio_pci", "virtio_rng", "virtio_console", "virtio_blk", "9p", "9pnet_virtio", "overlay"}
}

// resolveModules returns the files of the named modules and of all their dependencies, in an order in which they can be
// loaded. Paths are relative to dir, a lib/modules/RELEASE directory with depmod's modules.dep. Modules that are built
// into the kernel are left out.
func resolveModules(dir string, names []string) ([]string, error) {
	dep, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, fmt.Errorf("read module dependencies: %w", err)
	}
	builtin, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, fmt.Errorf("read the list of built-in modules: %w", err)
	}
	byName := make(map[string]string)
	needs := make(map[string][]string)
	for _, line := range strings.Split(string(dep), "\n") {
		if file, list, ok := strings.Cut(line, ":"); ok {
			byName[moduleName(file)] = file
			needs[file] = strings.Fields(list)
		}
	}
	have := make(map[string]bool)
	for _, file := range strings.Fields(string(builtin)) {
		have[moduleName(file)] = true
	}

	var order []string
	var add func(file string)
	add = func(file string) {
		if name := moduleName(file); !have[name] {
			have[name] = true
			// modules.dep lists each dependency after the modules that need it.
			for i := len(needs[file]) - 1; i >= 0; i-- {
				add(needs[file][i])
			}
			order = append(order, file)
		}
	}
	for _, name := range names {
		name = moduleName(name)
		if file, ok := byName[name]; ok {
			add(file)
		} else if !have[name] {
			return nil, fmt.Errorf("kernel module %s: not in %s", name, dir)
		}
	}
	return order, nil
}

// moduleName returns the kernel's name of a module file: no directory, no suffix, no dashes.
func moduleName(file string) string {
	name, _, _ := strings.Cut(filepath.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// readModule returns a module file uncompressed, because busybox's insmod loads no other.
func readModule(path string) ([]byte, error) {
	var tool string
	switch filepath.Ext(path) {
	case ".xz":
		tool = "xz"
	case ".zst":
		tool = "zstd"
	case ".gz":
		tool = "gzip"
	default:
		return os.ReadFile(path)
	}
	out, err := unpack(nil, tool, "-dc", path)
	if err != nil {
		return nil, fmt.Errorf("unpack module %s: %w", path, err)
	}
	return out, nil
}

// unpack runs a program that decompresses to standard output.
func unpack(stdin io.Reader, args ...string) ([]byte, error) {
	cmd := exec.Command(args[0], args[1:]...)
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = stdin, &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, stderr.String())
	}
	return out, nil
}
