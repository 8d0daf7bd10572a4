package devmapper

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// The decoders read data from the kernel. For any data, they must end, stay within it, and return
// no more than it holds.

func FuzzDecodeReply(f *testing.F) {
	f.Add(plainHeader(312, 0, 0, 0, "a", "b"))
	f.Add(append(plainHeader(320, 1, 0, 0, "a", "b"), "12345678"...))
	f.Add(plainHeader(1<<31, 1<<31, 0, 0, "", ""))
	f.Fuzz(func(t *testing.T, buf []byte) {
		r, err := decodeReply(buf)
		if err == nil {
			require.LessOrEqual(t, len(r.payload), len(buf))
			_ = deviceOf(&r.header)
		}
	})
}

func FuzzDecodeTargets(f *testing.F) {
	targets := []Target{
		{Length: 8, Type: "linear", Params: "7:0 0"},
		{Start: 8, Length: 1 << 40, Type: "thin-pool", Params: "7:0 7:1 128 0 1 skip_block_zeroing "},
		{Start: 1, Length: 8, Type: "error"},
	}
	for n := range len(targets) + 1 {
		f.Add(plainSpecs(targets[:n], true), uint32(n))
		f.Add(plainSpecs(targets[:n], false), uint32(n))
	}
	f.Add([]byte{}, uint32(1<<31))
	f.Fuzz(func(t *testing.T, payload []byte, count uint32) {
		decoded, err := decodeTargets(payload, count)
		if err != nil {
			return
		}
		require.Len(t, decoded, int(count))
		// The decoded targets can be encoded again, if they name their types.
		loaded, err := encodeTargets(decoded)
		if err != nil {
			return
		}
		require.Equal(t, string(plainSpecs(decoded, false)), string(loaded))
	})
}

func FuzzDecodeNames(f *testing.F) {
	devices := []Device{
		{Name: "a", Major: 253, Minor: 1, EventNr: 1},
		{Name: "thinsnap-snap-12", UUID: "THINSNAP-x-12", Major: 253, Minor: 300},
		{Name: "last", UUID: "u", Major: 253, Minor: 2},
	}
	for n := range len(devices) + 1 {
		f.Add(plainNames(devices[:n]))
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		decoded, err := decodeNames(payload)
		if err == nil {
			require.LessOrEqual(t, len(decoded)*nameOffset, len(payload))
		}
	})
}

func FuzzDecodeDeps(f *testing.F) {
	f.Add(plain(uint32(2), uint32(0), uint64(0x700), uint64(0x701)))
	f.Fuzz(func(t *testing.T, payload []byte) {
		decoded, err := decodeDeps(payload)
		if err == nil {
			require.LessOrEqual(t, len(decoded)*8, len(payload))
		}
	})
}

func FuzzDecodeVersions(f *testing.F) {
	f.Add(padded(plain(uint32(24), uint32(1), uint32(22), uint32(0), "thin")))
	f.Fuzz(func(t *testing.T, payload []byte) {
		decoded, err := decodeVersions(payload)
		if err == nil {
			require.LessOrEqual(t, len(decoded)*versionSize, len(payload))
		}
	})
}
