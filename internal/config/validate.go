package config

import (
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"

	"github.com/thinsnap/thinsnap/metadata"
)

const (
	// The limits of the kernel's thin-pool target on its block size (drivers/md/dm-thin.c).
	minBlockSize = 64 * kib
	maxBlockSize = 1 * gib
	// The kernel uses at most 16 GiB of a metadata device. A smaller device than the minimum has no
	// space for the space maps.
	minMetadataSize = 2 * mib
	maxMetadataSize = 16 * gib
	// Space for a base volume and some data on it.
	minDataSize = 64 * mib
	// The smallest file systems: mkfs.xfs rejects less, and a smaller ext4 has hardly any journal.
	minExt4Size = 16 * mib
	minXFSSize  = 300 * mib
	// Sizes of file systems and of the metadata are multiples of diskBlock.
	diskBlock = 4 * kib
	// Each spare is an active volume. More spares do not help.
	maxSpares = 1024
	// maxSocketPath is the size of sun_path in struct sockaddr_un (linux/un.h), without the final
	// zero byte.
	maxSocketPath = 107
	// maxPoolName leaves space for the names of a pool's devices in device-mapper's 127 bytes.
	maxPoolName = 64
	// maxPoolDevice is the longest device-mapper name, with its directory.
	maxPoolDevice = 127 + len("/dev/mapper/")
	// maxGroupName leaves space in 127 bytes for the name of LVM's volume "pool_tdata", with each
	// hyphen doubled.
	maxGroupName = 110
)

type checker struct{ problems []error }

// require records a problem with the key unless ok. The text is the key's rule.
func (c *checker) require(ok bool, key string, value any) {
	if !ok {
		c.add(key, value, "must be "+allowed(key))
	}
}

func (c *checker) add(key string, value any, text string) {
	c.problems = append(c.problems, problem(key, value, text))
}

func (c *checker) oneOf(key, value string, values ...string) {
	c.require(slices.Contains(values, value), key, value)
}

func problem(key string, value any, text string) error {
	return fmt.Errorf("%s = %s: %s", key, literal(value), text)
}

// Validate checks all keys, and returns all problems as an *Error. Call it again after changing a
// value, for example by a flag.
func (c *Config) Validate() error {
	var found checker
	if err := checkVersion(c.Version); err != nil {
		found.problems = append(found.problems, err)
	}
	found.daemon(c)
	found.pool(&c.Pool)
	found.filesystem(&c.Filesystem)
	found.require(c.Diff.Containerd == "" || isSocketPath(c.Diff.Containerd), "diff.containerd", c.Diff.Containerd)
	if len(found.problems) > 0 {
		return &Error{Problems: found.problems}
	}
	return nil
}

func checkVersion(v int) error {
	if v != Version {
		return problem("version", v, fmt.Sprintf("not supported: this version of thinsnap reads version %d", Version))
	}
	return nil
}

func (c *checker) daemon(cfg *Config) {
	c.require(filepath.IsAbs(cfg.Root) && filepath.Clean(cfg.Root) != "/", "root", cfg.Root)
	c.require(isSocketPath(cfg.Address), "address", cfg.Address)
	c.require(isSocketPath(cfg.AdminAddress) && filepath.Clean(cfg.AdminAddress) != filepath.Clean(cfg.Address),
		"admin_address", cfg.AdminAddress)
	c.clients(cfg)
	c.require(cfg.MetricsAddress == "" || isHostPort(cfg.MetricsAddress), "metrics_address", cfg.MetricsAddress)
	c.oneOf("log.level", cfg.Log.Level, "trace", "debug", "info", "warn", "error")
	c.oneOf("log.format", cfg.Log.Format, "text", "json")
}

func (c *checker) clients(cfg *Config) {
	names := map[string]bool{DefaultClient: true, "": true}
	sockets := map[string]bool{filepath.Clean(cfg.Address): true, filepath.Clean(cfg.AdminAddress): true}
	for _, client := range cfg.Clients {
		path := filepath.Clean(client.Address)
		c.require(!names[client.Name] && metadata.CheckKeySpace(client.Name) == nil, "clients.name", client.Name)
		c.require(isSocketPath(client.Address) && !sockets[path], "clients.address", client.Address)
		names[client.Name], sockets[path] = true, true
	}
}

func (c *checker) pool(p *Pool) {
	c.require(isPoolName(p.Name), "pool.name", p.Name)
	c.oneOf("pool.mode", p.Mode, Modes()...)
	c.require(within(p.BlockSize, minBlockSize, maxBlockSize) && p.BlockSize%minBlockSize == 0,
		"pool.block_size", p.BlockSize)
	c.require(p.MinFreeSpace < 100, "pool.min_free_space", p.MinFreeSpace)
	c.require(p.AutoextendThreshold >= 1 && p.AutoextendThreshold <= 100, "pool.autoextend_threshold",
		p.AutoextendThreshold)
	c.require(p.AutoextendPercent >= 1 && p.AutoextendPercent <= 100, "pool.autoextend_percent", p.AutoextendPercent)
	c.require(p.SparesMax <= maxSpares, "pool.spares_max", p.SparesMax)
	for _, m := range modes() {
		m.check(c, p)
	}
}

func (c *checker) filesystem(f *Filesystem) {
	c.oneOf("filesystem.type", f.Type, Ext4, XFS)
	smallest := minExt4Size
	if f.Type == XFS {
		smallest = minXFSSize
	}
	c.require(f.BaseSize >= smallest && f.BaseSize%diskBlock == 0, "filesystem.base_size", f.BaseSize)
	c.require(f.MaxSize == 0 || f.MaxSize >= f.BaseSize && f.MaxSize%diskBlock == 0, "filesystem.max_size", f.MaxSize)
	c.require(!slices.Contains(f.MkfsOptions, ""), "filesystem.mkfs_options", f.MkfsOptions)
	c.require(!slices.Contains(f.MountOptions, ""), "filesystem.mount_options", f.MountOptions)
}

func within(s, low, high Size) bool { return s >= low && s <= high }

func isSocketPath(p string) bool { return filepath.IsAbs(p) && len(p) <= maxSocketPath }

func isHostPort(address string) bool {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	_, err = strconv.ParseUint(port, 10, 16)
	return err == nil
}

// isPoolName reports whether device-mapper and udev use the name without escapes.
func isPoolName(name string) bool {
	return len(name) <= maxPoolName && regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+-]*$`).MatchString(name)
}
