package config

// DefaultPath is the file that is read if no other is given. It need not exist.
const DefaultPath = "/etc/thinsnap/config.toml"

// Version is the only version of the file's format.
const Version = 1

// The types of file systems.
const (
	Ext4 = "ext4"
	XFS  = "xfs"
)

// Config is a configuration. Every key has a default, so an empty file is valid; see Default.
type Config struct {
	Version        int        `toml:"version"`
	Root           string     `toml:"root"`
	Address        string     `toml:"address"`
	AdminAddress   string     `toml:"admin_address"`
	MetricsAddress string     `toml:"metrics_address"`
	Log            Log        `toml:"log"`
	Pool           Pool       `toml:"pool"`
	Filesystem     Filesystem `toml:"filesystem"`
	Diff           Diff       `toml:"diff"`
	Clients        []Client   `toml:"clients"`
}

// DefaultClient is the name of the client of Address.
const DefaultClient = "default"

// Client is a further client, with its own socket and snapshots.
type Client struct {
	Name    string `toml:"name"`
	Address string `toml:"address"`
}

// KeySpace returns the name of a client's key space in the store.
func KeySpace(client string) string {
	if client == DefaultClient {
		return ""
	}
	return client
}

// AllClients returns the default client and the further ones, in the order of the file.
func (c *Config) AllClients() []Client {
	return append([]Client{{DefaultClient, c.Address}}, c.Clients...)
}

// Log configures the daemon's log on standard error.
type Log struct {
	Level  string `toml:"level"`
	Format string `toml:"format"`
}

// Pool describes the thin pool.
type Pool struct {
	Name                string        `toml:"name"`
	Mode                string        `toml:"mode"`
	BlockSize           Size          `toml:"block_size"`
	MinFreeSpace        Percent       `toml:"min_free_space"`
	AutoextendThreshold Percent       `toml:"autoextend_threshold"`
	AutoextendPercent   Percent       `toml:"autoextend_percent"`
	SparesMax           uint          `toml:"spares_max"`
	DiscardOnRemove     bool          `toml:"discard_on_remove"`
	Loop                PoolLoop      `toml:"loop"`
	DirectLVM           PoolDirectLVM `toml:"direct_lvm"`
	Existing            PoolExisting  `toml:"existing"`
}

// PoolLoop holds the sizes of the two files of a pool in mode "loop": the maximum of the data file,
// and the initial size of the metadata file.
type PoolLoop struct {
	DataSize     Size `toml:"data_size"`
	MetadataSize Size `toml:"metadata_size"`
}

// PoolDirectLVM describes the disk of a pool in mode "direct-lvm", and how LVM divides it.
type PoolDirectLVM struct {
	Device           string  `toml:"device"`
	ThinpPercent     Percent `toml:"thinp_percent"`
	ThinpMetapercent Percent `toml:"thinp_metapercent"`
	Force            bool    `toml:"force"`
}

// PoolExisting names the pool in mode "existing".
type PoolExisting struct {
	Device string `toml:"device"`
}

// Filesystem describes the file system of a snapshot without a parent.
type Filesystem struct {
	Type         string   `toml:"type"`
	BaseSize     Size     `toml:"base_size"`
	MaxSize      Size     `toml:"max_size"`
	MkfsOptions  []string `toml:"mkfs_options"`
	MountOptions []string `toml:"mount_options"`
}

// Diff configures the comparison of snapshots for containerd's diff service.
type Diff struct {
	Containerd string `toml:"containerd"`
	Verify     bool   `toml:"verify"`
}

// Default returns the configuration of an empty file. It is valid.
func Default() Config {
	return Config{
		Version:      Version,
		Root:         "/var/lib/thinsnap",
		Address:      "/run/thinsnap/thinsnap.sock",
		AdminAddress: "/run/thinsnap/admin.sock",
		Log:          Log{Level: "info", Format: "text"},
		Pool: Pool{
			Name:                "thinsnap",
			Mode:                ModeLoop,
			BlockSize:           64 * kib,
			MinFreeSpace:        10,
			AutoextendThreshold: 80,
			AutoextendPercent:   20,
			SparesMax:           32,
			DiscardOnRemove:     true,
			Loop:                PoolLoop{DataSize: 100 * gib, MetadataSize: 64 * mib},
			DirectLVM:           PoolDirectLVM{ThinpPercent: 95, ThinpMetapercent: 1},
		},
		Filesystem: Filesystem{
			Type:         Ext4,
			BaseSize:     10 * gib,
			MkfsOptions:  []string{},
			MountOptions: []string{},
		},
		Clients: []Client{},
	}
}
