package filesystem

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

type countingReader struct {
	io.ReaderAt
	reads int
}

func (c *countingReader) ReadAt(p []byte, offset int64) (int, error) {
	c.reads++
	return c.ReaderAt.ReadAt(p, offset)
}

// TestXFSLogOfMkfs: mkfs writes an unmount record.
func TestXFSLogOfMkfs(t *testing.T) {
	for name, options := range map[string][]string{
		"default": nil, "stripes": {"-l", "su=32768"}, "version 4": {"-m", "crc=0"}, "sectors": {"-s", "size=4096"},
	} {
		t.Run(name, func(t *testing.T) {
			file, err := os.Open(image(t, XFS, 512<<20, options...))
			require.NoError(t, err)
			defer file.Close()
			counted := &countingReader{ReaderAt: file}
			clean, err := XFSLogClean(counted)
			require.NoError(t, err)
			require.True(t, clean)
			require.Less(t, counted.reads, 100)
		})
	}
}

// memoryLog is a log in memory, which its records fill one after the other.
type memoryLog struct {
	xfsLog
	bytes []byte
	at    int64
	cycle uint32
}

func newMemoryLog(blocks int64) *memoryLog {
	b := make([]byte, blocks*logBlock)
	return &memoryLog{xfsLog: xfsLog{r: bytes.NewReader(b), blocks: blocks}, bytes: b, cycle: 1}
}

func (l *memoryLog) write(data int, operations uint32, flags byte) {
	be := binary.BigEndian
	for i := range int64(1 + data) {
		b := l.bytes[l.at*logBlock:][:logBlock]
		clear(b)
		be.PutUint32(b, l.cycle)
		switch i {
		case 0:
			be.PutUint32(b, logRecordMagic)
			be.PutUint32(b[4:], l.cycle)
			be.PutUint32(b[8:], logVersion2)
			be.PutUint32(b[12:], uint32(data*logBlock))
			be.PutUint32(b[40:], operations)
			be.PutUint32(b[320:], logHeaderCovers)
		case 1:
			b[9] = flags
		}
		if l.at++; l.at == l.blocks {
			l.at = 0
			l.cycle++
		}
	}
}

// TestXFSLogEndsAnywhere: the last record decides wherever the log ends, even if the record wraps
// around.
func TestXFSLogEndsAnywhere(t *testing.T) {
	l := newMemoryLog(64)
	clean, err := l.clean()
	require.NoError(t, err)
	require.True(t, clean, "an unwritten log")
	for i := range 500 {
		data, operations, flags := 1+i%5, uint32(1+i%2), byte(0)
		if i%3 == 0 {
			operations, flags = 1, logUnmount
		}
		l.write(data, operations, flags)
		clean, err := l.clean()
		require.NoError(t, err)
		require.Equal(t, flags == logUnmount, clean, "record %d, up to block %d", i, l.at)
	}
}

// FuzzXFSLog: no superblock and no log causes a panic or an endless read.
func FuzzXFSLog(f *testing.F) {
	sb := make([]byte, superblockBytes)
	copy(sb, "XFSB\x00\x00\x10\x00\x00\x00\x00\x00\x00\x00\x01")
	f.Add(sb, []byte{0xfe, 0xed, 0xba, 0xbe})
	f.Fuzz(func(t *testing.T, block, log []byte) {
		device := bytes.Clone(block)
		if len(log) > 0 {
			device = append(device, bytes.Repeat(log, 64<<10/len(log))...)
		}
		counted := &countingReader{ReaderAt: bytes.NewReader(device)}
		_, err := XFSLogClean(counted)
		if err == nil {
			require.Less(t, counted.reads, 2*logMostRecord)
		}
	})
}
