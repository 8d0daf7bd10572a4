package config

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSizeText(t *testing.T) {
	for text, want := range map[string]Size{
		"64KiB":  64 * kib,
		"64k":    64 * kib,
		"64KB":   64 * kib,
		"10GiB":  10 * gib,
		"10 GiB": 10 * gib,
		"1.5GiB": 1536 * mib,
		"0":      0,
		"512":    512,
		"512B":   512,
		"2PiB":   1 << 51,
	} {
		var got Size
		require.NoError(t, got.UnmarshalText([]byte(text)), text)
		require.Equal(t, want, got, text)
	}
	for _, text := range []string{"", "GiB", "-1", "-1GiB", "10XB", "1 2", "9999999PiB", "8192PiB", "10 percent"} {
		var got Size
		require.ErrorContains(t, got.UnmarshalText([]byte(text)), "is not a size", text)
	}
}

func TestSizeRoundTrip(t *testing.T) {
	for want, text := range map[Size]string{
		0: "0B", 1: "1B", 1000: "1000B", 1025: "1025B", 64 * kib: "64KiB", 1536 * mib: "1536MiB", 100 * gib: "100GiB",
		1 << 60: "1024PiB",
	} {
		require.Equal(t, text, want.String())
		marshalled, err := want.MarshalText()
		require.NoError(t, err)
		var got Size
		require.NoError(t, got.UnmarshalText(marshalled))
		require.Equal(t, want, got)
	}
}

func TestPercentText(t *testing.T) {
	for text, want := range map[string]Percent{"10%": 10, "0%": 0, "0": 0, "99": 99} {
		var got Percent
		require.NoError(t, got.UnmarshalText([]byte(text)), text)
		require.Equal(t, want, got, text)
	}
	for _, text := range []string{"", "%", "ten", "-1%", "1.5%", "300%", "10%%"} {
		var got Percent
		require.ErrorContains(t, got.UnmarshalText([]byte(text)), "is not a percentage", text)
	}
	require.Equal(t, "10%", Percent(10).String())
}
