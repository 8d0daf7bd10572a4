package setup

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/errdefs"
)

// A Switch changes containerd's configuration between its built-in devmapper snapshotter and a
// proxy plugin.
type Switch struct {
	// Proxy is the name of the proxy plugin, and Address its socket.
	Proxy, Address string
	// Root is the directory of the proxy's data. The CRI reports the space of its file system.
	Root string
	// Platform is the platform of the machine, such as "linux/amd64".
	Platform string
}

// A Difference is a change of files that is not made yet. It is empty if nothing changes.
type Difference struct {
	// Files are the paths of the files to change.
	Files []string
	// Patch is a unified diff with absolute paths, for `patch -d / -p1`, without lines that have
	// secrets.
	Patch string
}

// snapshotType is the type of proxy plugins for snapshotters (containerd's
// cmd/containerd/server/server.go: LoadPlugins).
const snapshotType = "snapshot"

// ProxyAt returns the name of the snapshotter proxy plugin with the given address, or "".
func (c Config) ProxyAt(address string) string { return proxyAt(c.Proxies, address) }

func proxyAt(proxies map[string]Proxy, address string) string {
	for _, name := range slices.Sorted(maps.Keys(proxies)) {
		if proxies[name] == (Proxy{snapshotType, address}) {
			return name
		}
	}
	return ""
}

// Forward returns the changes of containerd's configuration and its imports that replace the built-in
// by the proxy:
//   - The proxy's section is added to proxy_plugins.
//   - Each key with the built-in as its snapshotter gets the proxy.
//   - The built-in is added to disabled_plugins, and removed from required_plugins: containerd 2.x does
//     not open its database if a configured snapshotter does not start.
//
// Each key stays in its file, so that all releases of containerd merge the files as before. Errors are
// those of Load for unreadable files, and errdefs.ErrInvalidArgument for a name that no proxy plugin
// can have. ErrFailedPrecondition means that another proxy plugin has the name or the address.
// ErrNotImplemented means that a file's form is not supported, or that a changed line has a secret.
func (s Switch) Forward(path string) (Difference, error) {
	if err := s.validate(); err != nil {
		return Difference{}, err
	}
	return onDisk().difference(path, s.forward)
}

// Back returns the changes that make containerd use the built-in again. The proxy's own section
// stays. Errors are those of Forward.
func (s Switch) Back(path string) (Difference, error) {
	return onDisk().difference(path, s.back)
}

func (s Switch) validate() error {
	if err := identifiers.Validate(s.Proxy); err != nil {
		return fmt.Errorf("the name of the proxy plugin: %w", err)
	}
	switch s.Proxy {
	// containerd does not start with a proxy plugin of this name (github.com/containerd/plugin:
	// checkUnique).
	case "aufs", "blockfile", "btrfs", devmapperName, "erofs", "native", "overlayfs", "zfs":
		return fmt.Errorf("%q is a snapshotter of containerd's own, and containerd does not start with a proxy plugin of "+
			"that name: choose another: %w", s.Proxy, errdefs.ErrInvalidArgument)
	}
	return nil
}

func (s Switch) forward(editors []*editor) error {
	proxies := make(map[string]Proxy)
	disabled := false
	for _, e := range editors {
		maps.Copy(proxies, e.Proxies)
		disabled = disabled || slices.ContainsFunc(e.Disabled, isBuiltin)
		e.rename(devmapperName, s.Proxy)
		e.dropBuiltin("required_plugins")
	}
	first := editors[0]
	if !disabled {
		first.disable(nameInDisabled(editors))
	}
	if other := proxyAt(proxies, s.Address); other != "" && other != s.Proxy {
		return fmt.Errorf("the proxy plugin %q has the address %s already: use that name, or remove its section "+
			"[proxy_plugins.%s]: %w", other, s.Address, quoted(other), errdefs.ErrFailedPrecondition)
	}
	present, exists := proxies[s.Proxy]
	if !exists {
		first.addProxy(s)
		return nil
	}
	if present != (Proxy{snapshotType, s.Address}) {
		return fmt.Errorf("there is a proxy plugin %q already, of type %q at %q: choose another name, or correct its "+
			"section to type %q and address %q: %w", s.Proxy, present.Type, present.Address, snapshotType, s.Address,
			errdefs.ErrFailedPrecondition)
	}
	return nil
}

func (s Switch) back(editors []*editor) error {
	for _, e := range editors {
		e.rename(s.Proxy, devmapperName)
		e.dropBuiltin("disabled_plugins")
	}
	return nil
}

// isBuiltin reports whether a name in a list of plugins means the built-in.
func isBuiltin(name string) bool { return name == devmapperName || name == devmapperURI }

// nameInDisabled returns the built-in's name for disabled_plugins in the first file. 2.x uses the
// short or the long name by that file's version, and 1.x by the last version of all files. Both
// ignore other names.
func nameInDisabled(editors []*editor) string {
	files := make([]file, len(editors))
	for i, e := range editors {
		files[i] = e.file
	}
	if m, ok := merge1(files); ok && files[0].Version <= 1 {
		return m.devmapper
	}
	return devmapperURI
}

// difference reads the files, and calls plan to change them.
func (d disk) difference(path string, plan func([]*editor) error) (Difference, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return Difference{}, err
	}
	files, err := d.readAll(path)
	if err != nil {
		return Difference{}, err
	}
	editors := make([]*editor, len(files))
	for i, f := range files {
		if editors[i], err = newEditor(f); err != nil {
			return Difference{}, err
		}
	}
	if err := plan(editors); err != nil {
		return Difference{}, fmt.Errorf("%s: %w", path, err)
	}
	var diff Difference
	var patch strings.Builder
	for _, e := range editors {
		if len(e.edits) == 0 {
			continue
		}
		if err := e.verify(); err != nil {
			return Difference{}, err
		}
		diff.Files = append(diff.Files, e.path)
		if err := writePatch(&patch, e.path, e.text, e.edits); err != nil {
			return Difference{}, err
		}
	}
	diff.Patch = patch.String()
	return diff, nil
}
