package vm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Offsets in a bootable image (Documentation/arch/x86/boot.rst).
const (
	setupSectorsAt  = 0x1f1 // 1 byte: sectors of 512 bytes before the payload's base, not counting the first
	magicAt         = 0x202 // "HdrS"
	payloadOffsetAt = 0x248 // 4 bytes
	payloadLengthAt = 0x24c // 4 bytes
	headerEnd       = 0x250
)

// decompressor returns the program that decompresses a payload with this magic number: xz (The .xz File Format,
// 2.1.1.1), used by Debian 12's kernels, or Zstandard (RFC 8878, 3.1.1), used by Debian 13's. It returns "" for others.
func decompressor(payload []byte) string {
	switch {
	case bytes.HasPrefix(payload, []byte("\xfd7zXZ\x00")):
		return "xz"
	case bytes.HasPrefix(payload, []byte("\x28\xb5\x2f\xfd")):
		return "zstd"
	default:
		return ""
	}
}

// sizeLength is the length of the number after the compressed kernel: the uncompressed size (size_append in
// scripts/Makefile.lib).
const sizeLength = 4

var errNotCompressed = errors.New("compressed by neither xz nor zstd")

// unpacked returns the path of the uncompressed kernel, which it writes to the cache if it is missing: an emulated
// processor decompresses the image for longer than the rest of its boot takes. QEMU starts it by its PVH entry, which
// Debian's kernels have. Images in other compressions are booted as they are.
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
		tool := decompressor(payload)
		if tool == "" {
			return nil, errNotCompressed
		}
		return unpack(bytes.NewReader(payload[:len(payload)-sizeLength]), tool, "-dc")
	})
	if errors.Is(err, errNotCompressed) {
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
