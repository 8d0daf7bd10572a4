package thin

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper"
)

func TestPoolTableRoundTrip(t *testing.T) {
	for _, c := range []struct {
		params string
		table  PoolTable
	}{
		{"7:1 7:0 128 32768 0", PoolTable{Metadata: "7:1", Data: "7:0", BlockSectors: 128, LowWaterBlocks: 32768}},
		{"/dev/a /dev/b 2097152 0 1 skip_block_zeroing", PoolTable{
			Metadata: "/dev/a", Data: "/dev/b", BlockSectors: 2097152, SkipBlockZeroing: true,
		}},
		{"7:1 7:0 256 1 5 skip_block_zeroing ignore_discard no_discard_passdown read_only error_if_no_space", PoolTable{
			Metadata: "7:1", Data: "7:0", BlockSectors: 256, LowWaterBlocks: 1, SkipBlockZeroing: true,
			IgnoreDiscard: true, NoDiscardPassdown: true, ReadOnly: true, ErrorIfNoSpace: true,
		}},
	} {
		target, err := c.table.Target(2048)
		require.NoError(t, err)
		require.Equal(t, devmapper.Target{Length: 2048, Type: "thin-pool", Params: c.params}, target)

		parsed, err := ParsePoolTable(c.params + " ") // as the kernel ends it
		require.NoError(t, err)
		require.Equal(t, c.table, parsed)
	}
}

func TestPoolTableRefuses(t *testing.T) {
	good := PoolTable{Metadata: "7:1", Data: "7:0", BlockSectors: 128}
	for name, spoil := range map[string]func(*PoolTable){
		"no metadata device":    func(p *PoolTable) { p.Metadata = "" },
		"two words as a device": func(p *PoolTable) { p.Data = "7:0 8" },
		"space after a device":  func(p *PoolTable) { p.Data = "7:0 " },
		"block too small":       func(p *PoolTable) { p.BlockSectors = 64 },
		"block not a multiple":  func(p *PoolTable) { p.BlockSectors = 192 },
		"block too large":       func(p *PoolTable) { p.BlockSectors = 2097152 + 128 },
	} {
		table := good
		spoil(&table)
		_, err := table.Target(2048)
		require.ErrorIs(t, err, errTable, name)
	}
	_, err := good.Target(0)
	require.ErrorIs(t, err, errTable)
}

func TestParsePoolTableRefuses(t *testing.T) {
	for _, params := range []string{
		"", "7:1 7:0 128", "7:1 7:0 x 0", "7:1 7:0 128 -1", "7:1 7:0 128 0 1", "7:1 7:0 128 0 0 read_only",
		"7:1 7:0 128 0 1 made_up", "7:1 7:0 128 0 x", "7:1 7:0 100 0 0",
	} {
		_, err := ParsePoolTable(params)
		require.ErrorIs(t, err, errTable, "%q", params)
	}
	table, err := ParsePoolTable("7:1 7:0 128 5") // the features are optional
	require.NoError(t, err)
	require.Equal(t, PoolTable{Metadata: "7:1", Data: "7:0", BlockSectors: 128, LowWaterBlocks: 5}, table)
}

func TestTargetRoundTrip(t *testing.T) {
	target := Target("253:0", MaxID, 20971520)
	require.Equal(t, devmapper.Target{Length: 20971520, Type: "thin", Params: "253:0 16777215"}, target)

	pool, id, err := ParseTarget(target.Params)
	require.NoError(t, err)
	require.Equal(t, "253:0", pool)
	require.Equal(t, MaxID, id)

	pool, id, err = ParseTarget("253:0 7 253:9")
	require.NoError(t, err, "with an external origin")
	require.Equal(t, "253:0", pool)
	require.Equal(t, ID(7), id)
}

func TestParseTargetRefuses(t *testing.T) {
	for _, params := range []string{"", "253:0", "253:0 -1", "253:0 16777216", "253:0 x", "253:0 1 2 3"} {
		_, _, err := ParseTarget(params)
		require.ErrorIs(t, err, errTable, "%q", params)
	}
}

func FuzzParsePoolTable(f *testing.F) {
	f.Add("7:1 7:0 128 32768 1 skip_block_zeroing ")
	f.Add("7:1 7:0 256 1 5 skip_block_zeroing ignore_discard no_discard_passdown read_only error_if_no_space")
	f.Add("a b 128 0")
	f.Fuzz(func(t *testing.T, params string) {
		table, err := ParsePoolTable(params)
		if err != nil {
			return
		}
		target, err := table.Target(1)
		require.NoError(t, err)
		again, err := ParsePoolTable(target.Params)
		require.NoError(t, err)
		require.Equal(t, table, again)
	})
}

func FuzzParseTarget(f *testing.F) {
	f.Add("253:0 7")
	f.Add("/dev/mapper/pool 16777215 7:9")
	f.Fuzz(func(t *testing.T, params string) {
		pool, id, err := ParseTarget(params)
		if err != nil {
			return
		}
		require.LessOrEqual(t, id, MaxID)
		require.Contains(t, params, pool)
		againPool, againID, err := ParseTarget(Target(pool, id, 1).Params)
		require.NoError(t, err)
		require.Equal(t, pool, againPool)
		require.Equal(t, id, againID)
	})
}
