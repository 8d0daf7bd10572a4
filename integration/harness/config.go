package harness

import (
	"fmt"
	"strings"
)

// config is what a containerd is started with.
type config struct {
	root    string // on a real file system
	state   string // sockets are in it, so its path has to be short
	proxies []Proxy
	// devmapper is the configuration of containerd's own snapshotter on a thin pool; nil leaves it off.
	devmapper *Devmapper
	// snapshotters that images may be unpacked for
	snapshotters []string
	// cri is the configuration of the CRI's plugins, which are off if it is empty. For version 3 and newer.
	cri string
}

// Proxy is a snapshotter that runs as a program of its own.
type Proxy struct {
	Name    string
	Address string // of its socket
	Root    string // where it says that its data is
}

// Devmapper is the configuration of containerd's own devmapper snapshotter, which formats its first layers with ext4 and
// discards what it removes, at once.
type Devmapper struct {
	Root     string // of its databases
	PoolName string // of an active pool
	BaseSize string // of every first layer, such as "10GB"
}

// DevmapperName is what containerd calls it.
const DevmapperName = "devmapper"

func (c config) socket() string { return c.state + "/containerd.sock" }

// render writes the configuration file as the release understands it. Plugins that need services of the system, or that
// take long to start, are off.
func (c config) render(release Release) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("version = %d", release.ConfigVersion)
	line("root = %q", c.root)
	line("state = %q", c.state)
	line("imports = []")
	if release.ConfigVersion >= 3 {
		if c.cri == "" {
			line(`disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.nri.v1.nri"]`)
		} else {
			line(`disabled_plugins = ["io.containerd.nri.v1.nri"]`)
			line("%s", c.cri)
		}
		line("[plugins.'io.containerd.server.v1.grpc']\n  address = %q", c.socket())
		line("[plugins.'io.containerd.server.v1.ttrpc']\n  address = %q", c.socket()+".ttrpc")
		line("[plugins.'io.containerd.shim.v1.manager']\n  socket_dir = %q", c.state+"/s")
		line("[plugins.'io.containerd.internal.v1.opt']\n  path = %q", c.root+"/opt")
		for _, name := range c.snapshotters {
			line("[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]")
			line("  platform = 'linux/amd64'\n  snapshotter = %q", name)
		}
	} else {
		line(`disabled_plugins = ["io.containerd.grpc.v1.cri"]`)
		line("[grpc]\n  address = %q", c.socket())
		line("[ttrpc]\n  address = %q", c.socket()+".ttrpc")
		line("[plugins.'io.containerd.internal.v1.opt']\n  path = %q", c.root+"/opt")
	}
	if d := c.devmapper; d != nil {
		line("[plugins.'io.containerd.snapshotter.v1.devmapper']\n  root_path = %q\n  pool_name = %q", d.Root, d.PoolName)
		line("  base_image_size = %q\n  fs_type = 'ext4'\n  async_remove = false\n  discard_blocks = true", d.BaseSize)
	}
	for _, proxy := range c.proxies {
		line("[proxy_plugins.%s]\n  type = 'snapshot'\n  address = %q", proxy.Name, proxy.Address)
		if release.ConfigVersion >= 3 {
			line("  platform = 'linux/amd64'\n  capabilities = ['remap-ids']")
			line("  [proxy_plugins.%s.exports]\n    root = %q", proxy.Name, proxy.Root)
		}
	}
	return b.String()
}
