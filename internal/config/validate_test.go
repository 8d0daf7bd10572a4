package config

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func withClients(clients ...Client) func(*Config) {
	return func(c *Config) { c.Clients = clients }
}

func TestValidate(t *testing.T) {
	long := strings.Repeat("x", 65)
	for name, test := range map[string]struct {
		change func(*Config)
		want   string // empty: allowed
	}{
		"defaults":              {func(*Config) {}, ""},
		"version":               {func(c *Config) { c.Version = 0 }, "version = 0: not supported"},
		"relative root":         {func(c *Config) { c.Root = "var" }, `root = "var": must be an absolute path`},
		"root directory":        {func(c *Config) { c.Root = "//" }, `root = "//": must be`},
		"relative socket":       {func(c *Config) { c.Address = "s.sock" }, `address = "s.sock": must be an absolute path of at most 107 bytes`},
		"long socket":           {func(c *Config) { c.AdminAddress = "/" + strings.Repeat("x", 107) }, "admin_address = "},
		"longest socket":        {func(c *Config) { c.AdminAddress = "/" + strings.Repeat("x", 106) }, ""},
		"one socket twice":      {func(c *Config) { c.AdminAddress = "/run//thinsnap/thinsnap.sock" }, "other than address"},
		"client":                {withClients(Client{"k3s", "/run/thinsnap/k3s.sock"}), ""},
		"clients":               {withClients(Client{"a", "/a"}, Client{"b-2", "/b"}), ""},
		"client without name":   {withClients(Client{"", "/a"}), `clients.name = "": must be 1 to 32 lower-case letters`},
		"client named default":  {withClients(Client{"default", "/a"}), `clients.name = "default"`},
		"client named A":        {withClients(Client{"A", "/a"}), `clients.name = "A"`},
		"client named a/b":      {withClients(Client{"a/b", "/a"}), `clients.name = "a/b"`},
		"client named a-":       {withClients(Client{"a-", "/a"}), `clients.name = "a-"`},
		"client twice":          {withClients(Client{"a", "/a"}, Client{"a", "/b"}), `clients.name = "a"`},
		"socket twice":          {withClients(Client{"a", "/a"}, Client{"b", "//a"}), `clients.address = "//a": must be an absolute path`},
		"default's socket":      {withClients(Client{"a", "/run/thinsnap/thinsnap.sock"}), `clients.address = `},
		"operator's socket":     {withClients(Client{"a", "/run/thinsnap/admin.sock"}), `clients.address = `},
		"client without socket": {withClients(Client{"a", ""}), `clients.address = ""`},
		"metrics port":          {func(c *Config) { c.MetricsAddress = "localhost" }, `metrics_address = "localhost": must be empty or HOST:PORT`},
		"metrics port range":    {func(c *Config) { c.MetricsAddress = ":70000" }, "metrics_address"},
		"metrics":               {func(c *Config) { c.MetricsAddress = "[::1]:9777" }, ""},
		"log level":             {func(c *Config) { c.Log.Level = "loud" }, `log.level = "loud": must be "trace" or "debug" or "info" or "warn" or "error"`},
		"log format":            {func(c *Config) { c.Log.Format = "xml" }, `log.format = "xml": must be "text" or "json"`},
		"pool name":             {func(c *Config) { c.Pool.Name = "a/b" }, `pool.name = "a/b"`},
		"pool name empty":       {func(c *Config) { c.Pool.Name = "" }, `pool.name = ""`},
		"pool name dots":        {func(c *Config) { c.Pool.Name = ".." }, `pool.name = ".."`},
		"pool name long":        {func(c *Config) { c.Pool.Name = long }, "pool.name"},
		"pool name longest":     {func(c *Config) { c.Pool.Name = long[1:] }, ""},
		"pool name characters":  {func(c *Config) { c.Pool.Name = "Pool-1_a.b+c" }, ""},
		"mode with no disk":     {func(c *Config) { c.Pool.Mode = "direct-lvm" }, `pool.direct_lvm.device = "": must name a disk in mode "direct-lvm"`},
		"disk for a loop pool":  {func(c *Config) { c.Pool.DirectLVM.Device = "/dev/xdf" }, `pool.mode = "loop": but pool.direct_lvm.device is set: remove one of them, or set the mode to "direct-lvm"`},
		"disk":                  {onDisk(func(*Config) {}), ""},
		"disk without a path":   {onDisk(func(c *Config) { c.Pool.DirectLVM.Device = "xdf" }), "pool.direct_lvm.device"},
		"no data":               {onDisk(func(c *Config) { c.Pool.DirectLVM.ThinpPercent = 0 }), `pool.direct_lvm.thinp_percent = "0%"`},
		"all data":              {onDisk(func(c *Config) { c.Pool.DirectLVM.ThinpPercent = 99 }), `pool.direct_lvm.thinp_percent = "99%"`},
		"no metadata":           {onDisk(func(c *Config) { c.Pool.DirectLVM.ThinpMetapercent = 0 }), `pool.direct_lvm.thinp_metapercent = "0%"`},
		"much metadata":         {onDisk(func(c *Config) { c.Pool.DirectLVM.ThinpMetapercent = 3 }), `pool.direct_lvm.thinp_metapercent = "3%": must be 1% to 49%, and at most half`},
		"long name for LVM":     {onDisk(func(c *Config) { c.Pool.Name = "p" + strings.Repeat("-", 63) }), "at most 110 characters"},
		"mode with no pool":     {func(c *Config) { c.Pool.Mode = "existing" }, `pool.existing.device = "": must name a thin pool in mode "existing"`},
		"pool for a loop pool":  {func(c *Config) { c.Pool.Existing.Device = "vg/p" }, `pool.mode = "loop": but pool.existing.device is set`},
		"disk and a pool":       {inPool("vg/p", func(c *Config) { c.Pool.DirectLVM.Device = "/dev/xdf" }), `pool.mode = "existing": but pool.direct_lvm.device`},
		"pool":                  {inPool("/dev/mapper/a-b--c", func(*Config) {}), ""},
		"pool by its name":      {inPool("a-b--c", func(*Config) {}), ""},
		"pool of LVM":           {inPool("v-g/l_v", func(*Config) {}), ""},
		"pool of LVM's path":    {inPool("/dev/vg/lv", func(*Config) {}), ""},
		"pool by its number":    {inPool("/dev/dm-3", func(*Config) {}), `pool.existing.device = "/dev/dm-3": must be empty, a mapped device's name or path`},
		"pool by a link":        {inPool("/dev/disk/by-id/dm-name-p", func(*Config) {}), "pool.existing.device"},
		"pool no path":          {inPool("vg/", func(*Config) {}), "pool.existing.device"},
		"mode unknown":          {func(c *Config) { c.Pool.Mode = "ram" }, `pool.mode = "ram": must be "loop" or "direct-lvm" or "existing"`},
		"block size":            {func(c *Config) { c.Pool.BlockSize = 100 * kib }, `pool.block_size = "100KiB": must be a multiple of 64KiB, at most 1GiB`},
		"block size zero":       {func(c *Config) { c.Pool.BlockSize = 0 }, `pool.block_size = "0B"`},
		"block size large":      {func(c *Config) { c.Pool.BlockSize = 2 * gib }, `pool.block_size = "2GiB"`},
		"block size largest":    {func(c *Config) { c.Pool.BlockSize = gib }, ""},
		"free space":            {func(c *Config) { c.Pool.MinFreeSpace = 100 }, `pool.min_free_space = "100%": must be 0% to 99%`},
		"threshold zero":        {func(c *Config) { c.Pool.AutoextendThreshold = 0 }, `pool.autoextend_threshold = "0%": must be 1% to 100%`},
		"threshold large":       {func(c *Config) { c.Pool.AutoextendThreshold = 101 }, "pool.autoextend_threshold"},
		"no growing":            {func(c *Config) { c.Pool.AutoextendThreshold = 100 }, ""},
		"growing by nothing":    {func(c *Config) { c.Pool.AutoextendPercent = 0 }, `pool.autoextend_percent = "0%": must be 1% to 100%`},
		"data":                  {func(c *Config) { c.Pool.Loop.DataSize = mib }, `pool.loop.data_size = "1MiB": must be at least 64MiB`},
		"metadata small":        {func(c *Config) { c.Pool.Loop.MetadataSize = mib }, `pool.loop.metadata_size = "1MiB": must be a multiple of 4KiB, from 2MiB to 16GiB`},
		"metadata large":        {func(c *Config) { c.Pool.Loop.MetadataSize = 17 * gib }, "pool.loop.metadata_size"},
		"metadata uneven":       {func(c *Config) { c.Pool.Loop.MetadataSize = 2*mib + 1 }, "pool.loop.metadata_size"},
		"file system":           {func(c *Config) { c.Filesystem.Type = "btrfs" }, `filesystem.type = "btrfs": must be "ext4" or "xfs"`},
		"ext4 least":            {func(c *Config) { c.Filesystem.BaseSize = 16 * mib }, ""},
		"ext4 small":            {func(c *Config) { c.Filesystem.BaseSize = 8 * mib }, `filesystem.base_size = "8MiB": must be a multiple of 4KiB, at least 16MiB for ext4 and 300MiB for xfs`},
		"xfs small":             {func(c *Config) { c.Filesystem.Type, c.Filesystem.BaseSize = XFS, 299*mib }, `filesystem.base_size = "299MiB"`},
		"max size small":        {func(c *Config) { c.Filesystem.MaxSize = 9 * gib }, `filesystem.max_size = "9GiB": must be 0B or a multiple of 4KiB, at least filesystem.base_size`},
		"max size uneven":       {func(c *Config) { c.Filesystem.MaxSize = 20*gib + 512 }, "filesystem.max_size"},
		"base size uneven":      {func(c *Config) { c.Filesystem.BaseSize = gib + 512 }, "filesystem.base_size"},
		"empty mkfs option":     {func(c *Config) { c.Filesystem.MkfsOptions = []string{"-I", ""} }, `filesystem.mkfs_options = ["-I", ""]: must be a list of non-empty strings`},
		"empty mount option":    {func(c *Config) { c.Filesystem.MountOptions = []string{""} }, "filesystem.mount_options"},
		"no spares":             {func(c *Config) { c.Pool.SparesMax = 0 }, ""},
		"too many spares":       {func(c *Config) { c.Pool.SparesMax = 1025 }, `pool.spares_max = 1025: must be a number from 0 to 1024`},
		"options with a comma":  {func(c *Config) { c.Filesystem.MountOptions = []string{`context="a:s0:c1,c2"`} }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := Default()
			test.change(&cfg)
			err := cfg.Validate()
			if test.want == "" {
				require.NoError(t, err)
				return
			}
			var problems *Error
			require.ErrorAs(t, err, &problems)
			require.Len(t, problems.Problems, 1)
			require.ErrorContains(t, problems.Problems[0], test.want)
		})
	}
}

func TestValidateReportsEverything(t *testing.T) {
	_, err := Parse([]byte("root = \"var\"\n[pool]\nname = \"\"\nmode = \"ram\"\nblock_size = \"1K\"\n"))
	var problems *Error
	require.ErrorAs(t, err, &problems)
	require.Len(t, problems.Problems, 4)
	require.Equal(t, `configuration: root = "var": must be an absolute path other than /; `+
		`pool.name = "": must be 1 to 64 letters, digits and the characters - _ . +, beginning with a letter or a digit; `+
		`pool.mode = "ram": must be "loop" or "direct-lvm" or "existing"; `+
		`pool.block_size = "1KiB": must be a multiple of 64KiB, at most 1GiB`, err.Error())
}

// onDisk changes a configuration in mode "direct-lvm".
func onDisk(change func(*Config)) func(*Config) {
	return func(c *Config) {
		c.Pool.Mode, c.Pool.DirectLVM.Device = ModeDirectLVM, "/dev/xdf"
		change(c)
	}
}

// inPool changes a configuration in mode "existing".
func inPool(device string, change func(*Config)) func(*Config) {
	return func(c *Config) {
		c.Pool.Mode, c.Pool.Existing.Device = ModeExisting, device
		change(c)
	}
}

func TestMissingMode(t *testing.T) {
	for text, want := range map[string]string{
		"":                                  ModeLoop,
		"[pool.direct_lvm]\nforce = true\n": ModeLoop,
		"[pool.direct_lvm]\ndevice = \"/dev/xdf\"\n":                               ModeDirectLVM,
		"[pool]\nmode = \"direct-lvm\"\ndirect_lvm.device = \"/dev/xdf\"\n":        ModeDirectLVM,
		"[pool]\nmode = \"loop\"\n[pool.direct_lvm]\nthinp_metapercent = 2\n":      ModeLoop,
		"[pool.existing]\ndevice = \"vg/pool\"\n":                                  ModeExisting,
		"[pool]\ndirect_lvm.device = \"/dev/disk/by-id/virtio-1\"\nname = \"x\"\n": ModeDirectLVM,
	} {
		cfg, err := Parse([]byte(text))
		require.NoError(t, err)
		require.Equal(t, want, cfg.Pool.Mode, text)
	}
	_, err := Parse([]byte("[pool]\nmode = \"loop\"\ndirect_lvm.device = \"/dev/xdf\"\n"))
	require.ErrorContains(t, err, "remove one of them")
}
