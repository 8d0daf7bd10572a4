package vm

import (
	"crypto/sha256"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

//go:embed first.sh
var firstScript []byte

//go:embed init.sh
var initScript []byte

//go:embed system.sh
var systemScript []byte

// initrd returns the path of the guest's initial RAM disk, for a guest with or without a system of its own (see
// ramdisk).
func initrd(k kernel, system bool) (string, error) {
	if system {
		return ramdisk(k, slices.Concat(firstScript, systemScript), append(bootModules(), "crc32c_generic", "ext4"))
	}
	return ramdisk(k, slices.Concat(firstScript, initScript), bootModules())
}

// ramdisk returns the path of an initial RAM disk, which it makes if the cache has none for this kernel, busybox and
// script. Calls with the same script must have the same modules.
func ramdisk(k kernel, script []byte, modules []string) (string, error) {
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return "", fmt.Errorf("read busybox (Debian package busybox-static): %w", err)
	}
	hash := sha256.New()
	for _, part := range [][]byte{[]byte(k.release), busybox, script} {
		sum := sha256.Sum256(part)
		hash.Write(sum[:])
	}
	path := filepath.Join(k.dir, fmt.Sprintf("initrd-%x.img", hash.Sum(nil)[:6]))
	if err := cached(path, func() ([]byte, error) { return makeInitrd(k, busybox, script, modules) }); err != nil {
		return "", fmt.Errorf("make the initial RAM disk: %w", err)
	}
	return path, nil
}

func makeInitrd(k kernel, busybox, script []byte, modules []string) ([]byte, error) {
	var w cpioWriter
	for _, d := range []string{"bin", "dev", "extra", "host", "modules", "proc", "root", "rw", "sys"} {
		w.dir(d)
	}
	w.file("bin/busybox", busybox)
	for _, applet := range []string{"echo", "insmod", "mkdir", "mount", "poweroff", "sed", "sh", "stty", "switch_root"} {
		w.symlink("bin/"+applet, "busybox")
	}
	w.file("init", script)

	dir := filepath.Join(k.modules, k.release)
	files, err := resolveModules(dir, modules)
	if err != nil {
		return nil, err
	}
	var list []byte
	for _, file := range files {
		module, err := readModule(filepath.Join(dir, file))
		if err != nil {
			return nil, fmt.Errorf("read a module for the initial RAM disk: %w", err)
		}
		name := moduleName(file) + ".ko"
		w.file("modules/"+name, module)
		list = append(list, name+"\n"...)
	}
	w.file("modules/list", list)
	return w.bytes(), nil
}
