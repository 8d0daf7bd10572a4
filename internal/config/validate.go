package config

import (
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
)

const (
	// The limits of the kernel's thin-pool target on its block size (drivers/md/dm-thin.c).
	minBlockSize = 64 * kib
	maxBlockSize = 1 * gib
	// The kernel uses no more than 16 GiB of a pool's metadata device, and too small a one does not hold its space maps.
	minMetadataSize = 2 * mib
	maxMetadataSize = 16 * gib
	// Less data than this does not hold a base volume and something on it.
	minDataSize = 64 * mib
	// The smallest file systems that are made: mkfs.xfs refuses less, and an ext4 smaller than this has no journal to speak of.
	minExt4Size = 16 * mib
	minXFSSize  = 300 * mib
	// The sizes of file systems and of the metadata are whole blocks of this size.
	diskBlock = 4 * kib
	// Each spare is an active device; so many more than this start no container sooner.
	mostSpares = 1024
	// maxSocketPath is the room for a path in struct sockaddr_un (linux/un.h), less its closing zero.
	maxSocketPath = 107
	// maxPoolName leaves room for the names of a pool's devices in device-mapper's 127 bytes.
	maxPoolName = 64
	// maxPoolDevice is the most that device-mapper has room for in a name, and a path in front of it.
	maxPoolDevice = 127 + len("/dev/mapper/")
	// maxGroupName leaves room in them for the name of LVM's volume "pool_tdata", with each hyphen doubled.
	maxGroupName = 110
)

// checker collects the problems of a configuration.
type checker struct{ problems []error }

// require records a problem with the key unless ok; the text of the problem is the key's own rule.
func (c *checker) require(ok bool, key string, value any) {
	if !ok {
		c.fault(key, value, "must be "+allowed(key))
	}
}

// fault records a problem with the key.
func (c *checker) fault(key string, value any, text string) {
	c.problems = append(c.problems, problem(key, value, text))
}

// oneOf requires the value to be in a list.
func (c *checker) oneOf(key, value string, values ...string) {
	c.require(slices.Contains(values, value), key, value)
}

// problem is the one form in which a value is faulted.
func problem(key string, value any, fault string) error {
	return fmt.Errorf("%s = %s: %s", key, literal(value), fault)
}

// Validate checks every key and reports all problems at once as an *Error. It must be called again after a value was
// changed, for example by a flag.
func (c *Config) Validate() error {
	var found checker
	if err := checkVersion(c.Version); err != nil {
		found.problems = append(found.problems, err)
	}
	found.daemon(c)
	found.pool(&c.Pool)
	found.filesystem(&c.Filesystem)
	found.require(c.Spares.Most <= mostSpares, "spares.most", c.Spares.Most)
	if len(found.problems) > 0 {
		return &Error{Problems: found.problems}
	}
	return nil
}

func checkVersion(v int) error {
	if v != Version {
		return problem("version", v, fmt.Sprintf("not supported by this version of thinsnap, which reads %d", Version))
	}
	return nil
}

func (c *checker) daemon(cfg *Config) {
	c.require(filepath.IsAbs(cfg.Root) && filepath.Clean(cfg.Root) != "/", "root", cfg.Root)
	c.require(isSocketPath(cfg.Address), "address", cfg.Address)
	c.require(isSocketPath(cfg.AdminAddress) && filepath.Clean(cfg.AdminAddress) != filepath.Clean(cfg.Address),
		"admin_address", cfg.AdminAddress)
	c.require(cfg.MetricsAddress == "" || isHostPort(cfg.MetricsAddress), "metrics_address", cfg.MetricsAddress)
	c.oneOf("log.level", cfg.Log.Level, "trace", "debug", "info", "warn", "error")
	c.oneOf("log.format", cfg.Log.Format, "text", "json")
}

func (c *checker) pool(p *Pool) {
	c.require(isPoolName(p.Name), "pool.name", p.Name)
	c.oneOf("pool.mode", p.Mode, modeNames()...)
	c.require(within(p.BlockSize, minBlockSize, maxBlockSize) && p.BlockSize%minBlockSize == 0,
		"pool.block_size", p.BlockSize)
	c.require(p.MinFreeSpace < 100, "pool.min_free_space", p.MinFreeSpace)
	c.require(p.AutoextendThreshold >= 1 && p.AutoextendThreshold <= 100, "pool.autoextend_threshold", p.AutoextendThreshold)
	c.require(p.AutoextendPercent >= 1 && p.AutoextendPercent <= 100, "pool.autoextend_percent", p.AutoextendPercent)
	for _, m := range modes() {
		m.check(c, p)
	}
}

func (c *checker) filesystem(f *Filesystem) {
	c.oneOf("filesystem.type", f.Type, Ext4, XFS)
	least := minExt4Size
	if f.Type == XFS {
		least = minXFSSize
	}
	c.require(f.BaseSize >= least && f.BaseSize%diskBlock == 0, "filesystem.base_size", f.BaseSize)
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

// isPoolName tells whether device-mapper and udev take the name as it is, with nothing to escape in it.
func isPoolName(name string) bool {
	return len(name) <= maxPoolName && regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+-]*$`).MatchString(name)
}
