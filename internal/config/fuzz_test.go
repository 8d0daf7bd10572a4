package config

import (
	"math"
	"testing"

	"github.com/pelletier/go-toml/v2"
	"github.com/stretchr/testify/require"
)

// FuzzParse: an accepted file survives a round trip, and its sizes fit the kernel's signed offsets.
// A rejected file gives an *Error.
func FuzzParse(f *testing.F) {
	f.Add([]byte(DefaultFile()))
	f.Add([]byte("version = 1\nroot = \"/srv/thinsnap\"\n[pool]\nblock_size = 131072\nmin_free_space = 0\n[pool.loop]\ndata_size = \"8191PiB\"\n"))
	f.Add([]byte("[filesystem]\ntype = \"xfs\"\nbase_size = \"1.5TiB\"\nmount_options = [\"a\", 'b\\']\n[pool]\nspares_max = 0\n"))
	f.Add([]byte("[pool]\nname = \"a-b\"\n[pool.direct_lvm]\ndevice = \"/dev/xdf\"\nthinp_percent = 90\nthinp_metapercent = 5\nforce = true\n"))
	f.Add([]byte("version = 2\n[pool]\nname = \"../..\"\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		cfg, err := Parse(text)
		if err != nil {
			var problems *Error
			require.ErrorAs(t, err, &problems)
			require.NotEmpty(t, problems.Problems)
			return
		}
		for _, size := range []Size{cfg.Pool.BlockSize, cfg.Pool.Loop.DataSize, cfg.Pool.Loop.MetadataSize, cfg.Filesystem.BaseSize} {
			require.LessOrEqual(t, uint64(size), uint64(math.MaxInt64))
		}
		require.NotContains(t, cfg.Pool.Name, "/")
		written, err := toml.Marshal(cfg)
		require.NoError(t, err)
		again, err := Parse(written)
		require.NoError(t, err)
		require.Equal(t, cfg, again)
	})
}

// FuzzSize: a size that can be parsed survives a round trip through text and number.
func FuzzSize(f *testing.F) {
	for _, text := range []string{"64KiB", "10 GiB", "1.5g", "8191PiB", "9223372036854775807", "-1", "0x10", "1e3", "10%", "100"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var size, again Size
		if err := size.UnmarshalText([]byte(text)); err == nil {
			require.LessOrEqual(t, uint64(size), uint64(math.MaxInt64))
			written, err := size.MarshalText()
			require.NoError(t, err)
			require.NoError(t, again.UnmarshalText(written))
			require.Equal(t, size, again)
		}
		var share, shareAgain Percent
		if err := share.UnmarshalText([]byte(text)); err == nil {
			require.NoError(t, shareAgain.UnmarshalText([]byte(share.String())))
			require.Equal(t, share, shareAgain)
		}
	})
}
