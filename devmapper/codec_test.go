package devmapper

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestEncodeRequest(t *testing.T) {
	h := header{name: "pool", uuid: "THINSNAP-1", flags: unix.DM_READONLY_FLAG, eventNr: udevCookie, targetCount: 2}
	payload := []byte("payload")

	got := encodeRequest(h, payload, headerSize)

	want := plainHeader(uint32(312+len(payload)), 2, unix.DM_READONLY_FLAG, 0x004f0000, "pool", "THINSNAP-1")
	require.Equal(t, append(want, payload...), got)
	require.Len(t, encodeRequest(h, payload, 4096), 4096, "room for the answer")
}

func TestEncodeRequestFillsNames(t *testing.T) {
	name, uuid := strings.Repeat("n", maxNameLen), strings.Repeat("u", maxUUIDLen)

	r, err := decodeReply(encodeRequest(header{name: name, uuid: uuid}, nil, headerSize))

	require.NoError(t, err)
	d := deviceOf(&r.header)
	require.Equal(t, name, d.Name)
	require.Equal(t, uuid, d.UUID)
}

func TestDecodeReply(t *testing.T) {
	full := append(plainHeader(320, 1, unix.DM_SUSPEND_FLAG, 7, "a", ""), "12345678rest"...)
	for _, c := range []struct {
		name    string
		buf     []byte
		payload string
		bad     bool
	}{
		{"payload", full, "12345678", false},
		{"no payload", append(plainHeader(305, 0, 0, 0, "a", ""), "rest"...), "", false},
		{"shorter than a header", full[:311], "", true},
		{"payload beyond the buffer", full[:319], "", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := decodeReply(c.buf)
			if c.bad {
				require.ErrorIs(t, err, errMalformed)
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.payload, string(r.payload))
		})
	}
}

func TestDeviceOf(t *testing.T) {
	h := unix.DmIoctl{
		Dev: unix.Mkdev(253, 70000), Open_count: 2, Target_count: 3, Event_nr: 4,
		Flags: unix.DM_READONLY_FLAG | unix.DM_ACTIVE_PRESENT_FLAG | unix.DM_DEFERRED_REMOVE,
	}
	copy(h.Name[:], "name")

	require.Equal(t, Device{
		Name: "name", Major: 253, Minor: 70000, OpenCount: 2, TargetCount: 3, EventNr: 4,
		ReadOnly: true, Live: true, DeferredRemove: true,
	}, deviceOf(&h))
	require.Equal(t, "253:70000", deviceOf(&h).Number())

	h.Flags = unix.DM_SUSPEND_FLAG | unix.DM_INACTIVE_PRESENT_FLAG
	d := deviceOf(&h)
	require.True(t, d.Suspended && d.Inactive)
	require.False(t, d.ReadOnly || d.Live || d.DeferredRemove)
}

func TestTargetsRoundTrip(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		targets := make([]Target, random.IntN(6))
		for i := range targets {
			targets[i] = Target{
				Start:  random.Uint64(),
				Length: random.Uint64(),
				Type:   strings.Repeat("t", 1+random.IntN(maxTypeLen)),
				Params: strings.Repeat("p", random.IntN(30)),
			}
		}
		loaded, err := encodeTargets(targets)
		require.NoError(t, err)
		require.Equal(t, string(plainSpecs(targets, false)), string(loaded))

		status := plainSpecs(targets, true)
		decoded, err := decodeTargets(status, uint32(len(targets)))
		require.NoError(t, err)
		require.Equal(t, targets, decoded)
	}
}

func TestDecodeTargetsWithoutFinalPadding(t *testing.T) {
	targets := []Target{{Length: 8, Type: "linear", Params: "7:0 0"}, {Start: 8, Length: 8, Type: "error"}}
	status := plainSpecs(targets, true)
	end := len(status) - 7 // the kernel's data_size ends with the last string

	decoded, err := decodeTargets(status[:end], 2)

	require.NoError(t, err)
	require.Equal(t, targets, decoded)
}

func TestEncodeTargetsRefuses(t *testing.T) {
	for _, target := range []Target{
		{Type: ""},
		{Type: strings.Repeat("t", 16)},
		{Type: "li\x00near"},
		{Type: "linear", Params: "7:0\x00 0"},
	} {
		_, err := encodeTargets([]Target{target})
		require.ErrorIs(t, err, unix.EINVAL, "%q", target)
	}
}

func TestNamesRoundTrip(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		var devices []Device
		for range random.IntN(6) {
			devices = append(devices, Device{
				Name:    strings.Repeat("n", 1+random.IntN(maxNameLen)),
				UUID:    strings.Repeat("u", random.IntN(maxUUIDLen+1)),
				Major:   253,
				Minor:   random.Uint32N(1 << 20),
				EventNr: random.Uint32(),
			})
		}
		decoded, err := decodeNames(plainNames(devices))
		require.NoError(t, err)
		require.Equal(t, devices, decoded)
	}
}

func TestDecodeNamesOfNone(t *testing.T) {
	for _, payload := range [][]byte{nil, make([]byte, 16)} {
		devices, err := decodeNames(payload)
		require.NoError(t, err)
		require.Empty(t, devices)
	}
}

func TestDecodeNamesOfOldKernels(t *testing.T) {
	dev := unix.Mkdev(253, 1)
	first := padded(plain(dev, uint32(16), "one")) // no event number, no uuid
	payload := append(first, padded(plain(dev, uint32(0), "two"))...)

	devices, err := decodeNames(payload)

	require.NoError(t, err)
	require.Equal(t, []Device{{Name: "one", Major: 253, Minor: 1}, {Name: "two", Major: 253, Minor: 1}}, devices)
}

func TestDecodeDeps(t *testing.T) {
	deps, err := decodeDeps(plain(uint32(2), uint32(0), uint64(0x700), uint64(0x701)))
	require.NoError(t, err)
	require.Equal(t, []uint64{0x700, 0x701}, deps)

	_, err = decodeDeps(plain(uint32(2), uint32(0), uint64(0x700)))
	require.ErrorIs(t, err, errMalformed)
}

func TestDecodeVersions(t *testing.T) {
	first := padded(plain(uint32(24), uint32(1), uint32(22), uint32(0), "thin"))
	payload := append(first, padded(plain(uint32(0), uint32(1), uint32(23), uint32(7), "thin-pool"))...)
	versions, err := decodeVersions(payload)
	require.NoError(t, err)
	require.Equal(t, map[string]Version{"thin": {1, 22, 0}, "thin-pool": {1, 23, 7}}, versions)

	_, err = decodeVersions(payload[:10])
	require.ErrorIs(t, err, errMalformed)
}

func TestEncodeMessage(t *testing.T) {
	require.Equal(t, plain(uint64(5), "create_thin 1"), encodeMessage(5, "create_thin 1"))
}

func TestDecodeRefusesCycles(t *testing.T) {
	targets := []Target{{Length: 8, Type: "linear"}, {Start: 8, Length: 8, Type: "linear"}}
	payload := plainSpecs(targets, true)
	payload[20], payload[21] = 0, 0 // next of the first: itself

	_, err := decodeTargets(payload, 2)

	require.ErrorIs(t, err, errMalformed)
}

func TestErrors(t *testing.T) {
	for _, c := range []struct {
		op    op
		errno unix.Errno
		kind  error
	}{
		{opRemove, unix.ENXIO, ErrNotFound},
		{opCreate, unix.EBUSY, ErrExists},
		{opRemove, unix.EBUSY, ErrBusy},
		{opLoad, unix.EBUSY, ErrBusy},
		{opCreate, unix.ENAMETOOLONG, ErrTooLong},
		{opLoad, unix.EINVAL, nil},
	} {
		err := error(newError(c.op, "dev", c.errno))
		require.ErrorIs(t, err, c.errno)
		for _, kind := range []error{ErrNotFound, ErrExists, ErrBusy, ErrTooLong, ErrUnavailable} {
			require.Equal(t, errors.Is(kind, c.kind), errors.Is(err, kind), "%v is %v", err, kind)
		}
		require.ErrorContains(t, err, c.op.String()+" dev: ")
	}
	require.Equal(t, "device-mapper: list: invalid argument", newError(opList, "", unix.EINVAL).Error())
}
