package thin

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPoolStatusRoundTrip(t *testing.T) {
	for _, c := range []struct {
		line   string
		status PoolStatus
	}{
		{"0 13/16384 80/131072 - rw discard_passdown queue_if_no_space - 1024", PoolStatus{
			Mode: ModeReadWrite, MetadataUsed: 13, MetadataTotal: 16384, DataUsed: 80, DataTotal: 131072,
			Discard: DiscardPassdown, QueueIfNoSpace: true, MetadataLowWater: 1024,
		}},
		{"7 13/16384 131072/131072 97 out_of_data_space no_discard_passdown error_if_no_space - 1024", PoolStatus{
			Mode: ModeOutOfDataSpace, TransactionID: 7, MetadataUsed: 13, MetadataTotal: 16384, DataUsed: 131072,
			DataTotal: 131072, HeldRoot: 97, Discard: DiscardNoPassdown, MetadataLowWater: 1024,
		}},
		{"1 2/3 4/5 - ro ignore_discard error_if_no_space needs_check 0", PoolStatus{
			Mode: ModeReadOnly, TransactionID: 1, MetadataUsed: 2, MetadataTotal: 3, DataUsed: 4, DataTotal: 5,
			Discard: DiscardIgnore, NeedsCheck: true,
		}},
		{"Fail", PoolStatus{Mode: ModeFail}},
		{"Error", PoolStatus{Mode: ModeError}},
	} {
		parsed, err := ParsePoolStatus(c.line + " ") // as the kernel ends it
		require.NoError(t, err)
		require.Equal(t, c.status, parsed)
		require.Equal(t, c.line, parsed.String())
	}
}

func TestPoolStatusChangeable(t *testing.T) {
	for mode, want := range map[Mode]bool{
		ModeReadWrite: true, ModeOutOfDataSpace: true, ModeReadOnly: false, ModeFail: false, ModeError: false,
	} {
		require.Equal(t, want, PoolStatus{Mode: mode}.Changeable(), mode)
	}
}

func TestParsePoolStatusOfOtherKernels(t *testing.T) {
	old, err := ParsePoolStatus("1 2/3 4/5 - rw discard_passdown queue_if_no_space")
	require.NoError(t, err)
	require.Zero(t, old.MetadataLowWater)

	later, err := ParsePoolStatus("1 2/3 4/5 - rw discard_passdown queue_if_no_space - 9 new words")
	require.NoError(t, err)
	require.Equal(t, uint64(9), later.MetadataLowWater)
}

func TestParsePoolStatusRefuses(t *testing.T) {
	for _, line := range []string{
		"", "rw", "1 2/3 4/5 - rw discard_passdown",
		"x 2/3 4/5 - rw discard_passdown queue_if_no_space - 9",
		"1 23 4/5 - rw discard_passdown queue_if_no_space - 9",
		"1 2/3 4/x - rw discard_passdown queue_if_no_space - 9",
		"1 2/3 4/5 + rw discard_passdown queue_if_no_space - 9",
		"1 2/3 4/5 - rx discard_passdown queue_if_no_space - 9",
		"1 2/3 4/5 - rw discard queue_if_no_space - 9",
		"1 2/3 4/5 - rw discard_passdown queue - 9",
		"1 2/3 4/5 - rw discard_passdown queue_if_no_space check 9",
		"1 2/3 4/5 - rw discard_passdown queue_if_no_space - -9",
	} {
		_, err := ParsePoolStatus(line)
		require.ErrorIs(t, err, errStatus, "%q", line)
	}
}

func TestParseStatus(t *testing.T) {
	for _, c := range []struct {
		line   string
		status Status
	}{
		{"0 -", Status{}},
		{"1280 20971519", Status{MappedSectors: 1280, Highest: 20971519, HasHighest: true}},
		{"-", Status{}},
		{"Fail", Status{Failed: true}},
		{"Error", Status{Failed: true}},
	} {
		got, err := ParseStatus(c.line)
		require.NoError(t, err, "%q", c.line)
		require.Equal(t, c.status, got)
	}
	for _, line := range []string{"", "1280", "x -", "1 x", "-1 -"} {
		_, err := ParseStatus(line)
		require.ErrorIs(t, err, errStatus, "%q", line)
	}
}

func FuzzParsePoolStatus(f *testing.F) {
	f.Add("0 13/16384 80/131072 - rw discard_passdown queue_if_no_space - 1024 ")
	f.Add("7 13/16384 131072/131072 97 out_of_data_space no_discard_passdown error_if_no_space needs_check 1024")
	f.Add("Fail")
	f.Fuzz(func(t *testing.T, line string) {
		status, err := ParsePoolStatus(line)
		if err != nil {
			return
		}
		again, err := ParsePoolStatus(status.String())
		require.NoError(t, err)
		require.Equal(t, status, again)
	})
}

func FuzzParseStatus(f *testing.F) {
	f.Add("1280 20971519")
	f.Add("0 -")
	f.Add("-")
	f.Add("Fail")
	f.Fuzz(func(t *testing.T, line string) {
		status, err := ParseStatus(line)
		if err != nil {
			return
		}
		require.True(t, status.HasHighest || status.Highest == 0)
		again, err := ParseStatus(statusLine(status))
		require.NoError(t, err)
		require.Equal(t, status, again)
	})
}

func statusLine(s Status) string {
	switch {
	case s.Failed:
		return "Fail"
	case s.HasHighest:
		return fmt.Sprintf("%d %d", s.MappedSectors, s.Highest)
	default:
		return fmt.Sprintf("%d -", s.MappedSectors)
	}
}
