package vm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Offsets in a bootable image, and what is there (Documentation/arch/x86/boot.rst).
const (
	setupSectorsAt  = 0x1f1 // 1 byte: sectors of 512 bytes, beyond the first one, before the payload's base
	magicAt         = 0x202 // "HdrS"
	payloadOffsetAt = 0x248 // 4 bytes
	payloadLengthAt = 0x24c // 4 bytes
	headerEnd       = 0x250
)

// xzMagic begins what xz has compressed (The .xz File Format, 2.1.1.1).
const xzMagic = "\xfd7zXZ\x00"

var errNotXZ = errors.New("not compressed by xz")

// unpacked returns the path of the kernel's image uncompressed, made when the cache has none. An emulated processor takes
// longer to unpack the image than for all the rest of its boot. QEMU starts such an image by its PVH entry, which Debian's
// kernels have. A kernel that is not compressed by xz, as they are, stays as it is.
func (k kernel) unpacked() (string, error) {
	path := filepath.Join(filepath.Dir(k.image), "vmlinux-"+k.release)
	err := cached(path, func() ([]byte, error) {
		image, err := os.ReadFile(k.image)
		if err != nil {
			return nil, err
		}
		payload, err := payloadOf(image)
		if err != nil {
			return nil, err
		}
		if !bytes.HasPrefix(payload, []byte(xzMagic)) {
			return nil, errNotXZ
		}
		// The length of what it unpacks to follows the stream.
		return unpack(bytes.NewReader(payload), "xz", "-dc", "--single-stream")
	})
	if errors.Is(err, errNotXZ) {
		return k.image, nil
	}
	if err != nil {
		return "", fmt.Errorf("unpack the kernel %s: %w", k.image, err)
	}
	return path, nil
}

// payloadOf returns the compressed kernel in a bootable image.
func payloadOf(image []byte) ([]byte, error) {
	if len(image) < headerEnd || string(image[magicAt:magicAt+4]) != "HdrS" {
		return nil, errors.New("it has no header of a bootable image")
	}
	base := (uint64(image[setupSectorsAt]) + 1) * 512
	start := base + uint64(binary.LittleEndian.Uint32(image[payloadOffsetAt:]))
	end := start + uint64(binary.LittleEndian.Uint32(image[payloadLengthAt:]))
	if end > uint64(len(image)) {
		return nil, fmt.Errorf("its payload ends at %d of %d bytes", end, len(image))
	}
	return image[start:end], nil
}
