// Package setup finds the containerds of the machine, and reads from their configurations which
// snapshotters they use and how the built-in devmapper snapshotter is configured. It plans the
// changes of the files for another snapshotter. It changes nothing.
package setup

import (
	"fmt"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
)

// Config is containerd's configuration: the content of its file and imports, with defaults for
// missing keys.
type Config struct {
	// Files are the file and its imports, in the order in which containerd reads them.
	Files []string
	// Version is the version of the file itself; 1 if it has none. Imports have their own.
	Version int
	// Only is "1.x" or "2.x" if the built-in starts only by the import rules of that release. It is
	// empty if both releases give the same result.
	Only        string
	Root, State string
	// Devmapper is the complete section of the built-in snapshotter.
	Devmapper Devmapper
	// Uses are the keys in plugin sections that name a snapshotter.
	Uses []Use
	// Proxies are the proxy plugins of every type, by name.
	Proxies map[string]Proxy
}

// Devmapper has the fields of Config in containerd's plugins/snapshots/devmapper/config.go.
type Devmapper struct {
	RootPath       string `toml:"root_path"`
	PoolName       string `toml:"pool_name"`
	BaseImageSize  string `toml:"base_image_size"`
	AsyncRemove    bool   `toml:"async_remove"`
	DiscardBlocks  bool   `toml:"discard_blocks"`
	FileSystemType string `toml:"fs_type"`
	FsOptions      string `toml:"fs_options"`
	// Unknown are the other keys of the section, which containerd ignores, sorted.
	Unknown []string `toml:"-"`
	// Disabled is true if the plugin is in disabled_plugins.
	Disabled bool `toml:"-"`
}

// At returns the configuration for another root of containerd, as its option --root sets it. It
// changes the built-in's default root_path.
func (c Config) At(root string) Config {
	if c.Devmapper.RootPath == filepath.Join(c.Root, devmapperURI) {
		c.Devmapper.RootPath = filepath.Join(root, devmapperURI)
	}
	c.Root = root
	return c
}

// Use is a key that names a snapshotter: of the CRI, of one of its runtimes, or in unpack_config.
type Use struct {
	// Key is the dotted key in TOML's form, with list indexes in brackets.
	Key         string
	Snapshotter string
}

// Proxy is a section of proxy_plugins.
type Proxy struct {
	Type    string `toml:"type"`
	Address string `toml:"address"`
}

const (
	// devmapperName and devmapperURI are the plugin's names in version 1 and in later versions
	// (containerd's cmd/containerd/server/config/config.go: v1MigratePluginName).
	devmapperName = "devmapper"
	devmapperURI  = "io.containerd.snapshotter.v1.devmapper"

	// defaultRoot and defaultState are containerd's defaults (its defaults package).
	defaultRoot  = "/var/lib/containerd"
	defaultState = "/run/containerd"

	// The file systems of the built-in (containerd's plugins/snapshots/devmapper/snapshotter.go).
	ext4 = "ext4"
	xfs  = "xfs"
	ext2 = "ext2"
)

// complete sets the built-in's defaults, and fails if the built-in would not start.
func (d *Devmapper) complete(root string) error {
	if d.PoolName == "" {
		return fmt.Errorf("[plugins.%q] has no pool_name, so containerd does not start its built-in devmapper "+
			"snapshotter: name the file that containerd reads (--config of containerd; the default is "+
			"/etc/containerd/config.toml), or begin with `thinsnap config default`: %w", devmapperURI, errdefs.ErrNotFound)
	}
	if d.RootPath == "" {
		d.RootPath = filepath.Join(root, devmapperURI)
	}
	if d.FileSystemType == "" {
		d.FileSystemType = ext4
	}
	if _, err := units.RAMInBytes(d.BaseImageSize); err != nil {
		return invalidKey("base_image_size", d.BaseImageSize, "a size with a unit, such as \"10GB\"")
	}
	switch d.FileSystemType {
	case ext4, xfs, ext2:
		return nil
	}
	return invalidKey("fs_type", d.FileSystemType, "\"ext4\", \"xfs\" or \"ext2\"")
}

func invalidKey(key, value, must string) error {
	return fmt.Errorf("[plugins.%q] has %s = %q, with which containerd's built-in devmapper snapshotter does not start: "+
		"set it to %s: %w", devmapperURI, key, value, must, errdefs.ErrInvalidArgument)
}
