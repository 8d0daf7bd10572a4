package vm

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func bootImage(payload []byte) []byte {
	const base, offset = 3 * 512, 100
	image := make([]byte, base+offset, base+offset+len(payload))
	image[setupSectorsAt] = 2
	copy(image[magicAt:], "HdrS")
	binary.LittleEndian.PutUint32(image[payloadOffsetAt:], offset)
	binary.LittleEndian.PutUint32(image[payloadLengthAt:], uint32(len(payload)))
	return append(image, payload...)
}

func TestUnpackedKernel(t *testing.T) {
	content := bytes.Repeat([]byte("kernel"), 1000)
	compress := func(tool string) []byte {
		cmd := exec.Command(tool, "--stdout")
		cmd.Stdin = bytes.NewReader(content)
		compressed, err := cmd.Output()
		require.NoError(t, err)
		return append(compressed, 1, 2, 3, 4) // the size
	}
	compressed := compress("xz")
	for name, test := range map[string]struct {
		image []byte
		want  []byte // nil: the image stays as it is
		err   string
	}{
		"xz":                  {image: bootImage(compressed), want: content},
		"zstd":                {image: bootImage(compress("zstd")), want: content},
		"something else":      {image: bootImage([]byte("\x1f\x8b\x08compressed"))},
		"a broken stream":     {image: bootImage(compressed[:len(compressed)/2]), err: "Unexpected end of input"},
		"cut short":           {image: bootImage(compressed)[:1650], err: "its payload ends at"},
		"not a kernel":        {image: content, err: "no header"},
		"shorter than header": {image: []byte("MZ"), err: "no header"},
	} {
		t.Run(name, func(t *testing.T) {
			k := kernel{release: "1.2.3", image: filepath.Join(t.TempDir(), "vmlinuz-1.2.3")}
			require.NoError(t, os.WriteFile(k.image, test.image, 0o600))
			for range 2 { // made the first time, found the second
				path, err := k.unpacked()
				if test.err != "" {
					require.ErrorContains(t, err, test.err)
					continue
				}
				require.NoError(t, err)
				if test.want == nil {
					require.Equal(t, k.image, path)
					continue
				}
				got, err := os.ReadFile(path)
				require.NoError(t, err)
				require.Equal(t, test.want, got)
			}
		})
	}
}
