package harness

import (
	"cmp"
	"fmt"
	"strings"
)

// Proxy is a snapshotter in a program of its own.
type Proxy struct {
	Name    string
	Address string // of its socket
	Root    string // of its data, as clients are told
	// Differ is its name as a differ, which is tried before the walking one; "" if it is none. Needs
	// [Release.DifferProxies].
	Differ string
}

// Devmapper is the configuration of containerd's own devmapper snapshotter.
type Devmapper struct {
	Root       string // of its databases
	PoolName   string // of an active pool
	BaseSize   string // of every snapshot, such as "10GB"
	Filesystem string // of a snapshot without a parent; ext4 by default
	// AsyncRemove makes it delete volumes after a garbage collection, not during it.
	AsyncRemove bool
	// NoDiscard makes it keep the blocks of removed snapshots allocated, which is its own default.
	NoDiscard bool
}

// DevmapperName is the name of containerd's own devmapper snapshotter.
const DevmapperName = "devmapper"

func (c Setup) socket() string { return c.State + "/containerd.sock" }

// render returns the configuration file in the release's version. Plugins that need services of the system, or that
// start slowly, are disabled.
func (c Setup) render(release Release) string {
	snapshotters := []string{"overlayfs", "native"}
	for _, proxy := range c.Proxies {
		snapshotters = append(snapshotters, proxy.Name)
	}
	if c.Devmapper != nil {
		snapshotters = append(snapshotters, DevmapperName)
	}
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("version = %d", release.ConfigVersion)
	line("root = %q", c.Root)
	line("state = %q", c.State)
	line("imports = []")
	switch {
	case release.ConfigVersion < 3 && c.CRI == "":
		line(`disabled_plugins = ["io.containerd.grpc.v1.cri"]`)
	case release.ConfigVersion >= 3 && c.CRI == "":
		line(`disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.nri.v1.nri"]`)
	case release.ConfigVersion >= 3:
		line(`disabled_plugins = ["io.containerd.nri.v1.nri"]`)
	}
	if c.CRI != "" {
		line("%s", c.CRI)
	}
	if release.ConfigVersion >= 4 {
		line("[plugins.'io.containerd.server.v1.grpc']\n  address = %q", c.socket())
		line("[plugins.'io.containerd.server.v1.ttrpc']\n  address = %q", c.socket()+".ttrpc")
		line("[plugins.'io.containerd.shim.v1.manager']\n  socket_dir = %q", c.State+"/s")
	} else {
		line("[grpc]\n  address = %q", c.socket())
		line("[ttrpc]\n  address = %q", c.socket()+".ttrpc")
	}
	line("[plugins.'io.containerd.internal.v1.opt']\n  path = %q", c.Root+"/opt")
	if release.Transfer {
		for _, name := range snapshotters {
			line("[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]")
			line("  platform = 'linux/amd64'\n  snapshotter = %q\n  differ = 'walking'", name)
		}
	}
	if d := c.Devmapper; d != nil {
		line("[plugins.'io.containerd.snapshotter.v1.devmapper']\n  root_path = %q\n  pool_name = %q", d.Root, d.PoolName)
		line("  base_image_size = %q\n  fs_type = %q\n  async_remove = %v\n  discard_blocks = %v",
			d.BaseSize, cmp.Or(d.Filesystem, "ext4"), d.AsyncRemove, !d.NoDiscard)
	}
	for _, proxy := range c.Proxies {
		line("[proxy_plugins.%s]\n  type = 'snapshot'\n  address = %q", proxy.Name, proxy.Address)
		if release.RemapIDs {
			line("  platform = 'linux/amd64'\n  capabilities = ['remap-ids']")
			line("  [proxy_plugins.%s.exports]\n    root = %q", proxy.Name, proxy.Root)
		}
		if proxy.Differ != "" {
			line("[proxy_plugins.%s]\n  type = 'diff'\n  address = %q\n  platform = 'none/none'", proxy.Differ, proxy.Address)
			line("[plugins.'io.containerd.service.v1.diff-service']\n  default = [%q, 'walking']", proxy.Differ)
		}
	}
	return b.String()
}
