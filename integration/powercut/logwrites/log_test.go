package logwrites_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/powercut/logwrites"
)

const sector = 512

type memory []byte

func (m memory) WriteAt(p []byte, at int64) (int, error) { return copy(m[at:], p), nil }

// builder builds a log in the kernel's format.
type builder struct {
	entries uint64
	out     []byte
}

func (b *builder) entry(flags, at uint64, data []byte, text string) {
	b.entries++
	block := binary.LittleEndian.AppendUint64(nil, at)
	block = binary.LittleEndian.AppendUint64(block, uint64(len(data)/sector))
	block = binary.LittleEndian.AppendUint64(block, flags)
	block = binary.LittleEndian.AppendUint64(block, uint64(len(text)))
	block = append(block, text...)
	b.out = append(b.out, append(block, make([]byte, sector-len(block))...)...)
	if flags&logwrites.Discard == 0 {
		b.out = append(b.out, data...)
	}
}

func (b *builder) log(t *testing.T) *logwrites.Log {
	t.Helper()
	var super []byte
	for _, v := range []uint64{0x6a736677736872, 1, b.entries} {
		super = binary.LittleEndian.AppendUint64(super, v)
	}
	super = binary.LittleEndian.AppendUint32(super, sector)
	log, err := logwrites.Read(bytes.NewReader(append(append(super, make([]byte, sector-len(super))...), b.out...)))
	require.NoError(t, err)
	return log
}

func sectors(letters string) []byte {
	var data []byte
	for _, c := range letters {
		data = append(data, bytes.Repeat([]byte{byte(c)}, sector)...)
	}
	return data
}

// letters returns the first byte of each sector.
func letters(device memory) string {
	var s []byte
	for i := 0; i < len(device); i += sector {
		s = append(s, max(device[i], '.'))
	}
	return string(s)
}

func example() *builder {
	b := new(builder)
	b.entry(0, 0, sectors("ab"), "")
	b.entry(logwrites.Flush, 0, nil, "")
	b.entry(8, 0, nil, "begun")
	b.entry(logwrites.FUA, 3, sectors("F"), "")
	b.entry(0, 1, sectors("c"), "")
	b.entry(logwrites.Discard, 0, sectors("x"), "")
	b.entry(0, 5, sectors("de"), "")
	b.entry(logwrites.Flush, 0, nil, "")
	b.entry(8, 0, nil, "done")
	return b
}

func TestReplay(t *testing.T) {
	log := example().log(t)
	require.Len(t, log.Entries, 9)
	require.Equal(t, "begun", log.Entries[2].Mark)
	device := make(memory, 8*sector)
	var states []string
	for _, e := range log.Entries {
		require.NoError(t, log.Apply(e, device))
		states = append(states, letters(device))
	}
	require.Equal(t, []string{
		"ab......", "ab......", "ab......", "ab.F....", "ac.F....", ".c.F....", ".c.F.de.", ".c.F.de.", ".c.F.de.",
	}, states)
}

// TestDraw: each state has all data that was flushed or written with FUA, and any part of the rest.
func TestDraw(t *testing.T) {
	log := example().log(t)
	random := rand.New(rand.NewPCG(1, 0))
	seen := make(map[string]bool)
	for range 2000 {
		p := log.Draw(random, 2)
		require.GreaterOrEqual(t, p.Settled, 2)
		device := make(memory, 8*sector)
		for _, e := range log.Entries[:p.Settled] {
			require.NoError(t, log.Apply(e, device))
		}
		for _, i := range p.Some {
			require.Less(t, i, p.End)
			require.NoError(t, log.Apply(log.Entries[i], device))
		}
		if p.End > 3 {
			require.EqualValues(t, 'F', device[3*sector])
		}
		seen[letters(device)] = true
	}
	require.Contains(t, seen, ".c.F.de.")
	require.Contains(t, seen, "ab.F.de.", "a later write without an earlier one")
	require.Contains(t, seen, "ab......")
	require.Len(t, seen, 1+2*2*2)
}

func TestNoLog(t *testing.T) {
	_, err := logwrites.Read(bytes.NewReader(make([]byte, 4096)))
	require.ErrorContains(t, err, "magic")
}
