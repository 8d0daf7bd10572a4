package devmapper

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The layouts are those of linux/dm-ioctl.h: a struct dm_ioctl, then at
// data_start a payload whose records are aligned to 8 bytes. All numbers are
// in the machine's byte order.
const (
	headerSize = unix.SizeofDmIoctl
	specSize   = unix.SizeofDmTargetSpec
	// nameOffset is offsetof(struct dm_name_list, name). The struct's size
	// is larger: it is padded to 8 bytes and the name starts in the padding.
	nameOffset = int(unsafe.Offsetof(unix.DmNameList{}.Next) + unsafe.Sizeof(unix.DmNameList{}.Next))
	depsSize   = int(unsafe.Sizeof(unix.DmTargetDeps{}))
	// versionSize is offsetof(struct dm_target_versions, name).
	versionSize = int(unsafe.Sizeof(unix.DmTargetVersions{}))
	alignment   = 8

	// maxNameLen and maxUUIDLen leave room for the terminating NUL.
	maxNameLen = unix.DM_NAME_LEN - 1
	maxUUIDLen = unix.DM_UUID_LEN - 1
	maxTypeLen = unix.DM_MAX_TYPE_NAME - 1
)

// errMalformed is matched by all errors about a reply's layout.
var errMalformed = errors.New("malformed reply from the kernel")

type header struct {
	name, uuid  string
	flags       uint32
	eventNr     uint32
	targetCount uint32
}

// reply is a decoded answer. Its payload aliases the request's buffer.
type reply struct {
	header  unix.DmIoctl
	payload []byte
}

// bytesOf returns the memory of one of the kernel's fixed-size structs, to copy
// it to and from buffers of any alignment.
func bytesOf[T unix.DmIoctl | unix.DmTargetSpec | unix.DmTargetMsg | unix.DmTargetDeps | unix.DmTargetVersions](
	p *T,
) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(p)), unsafe.Sizeof(*p))
}

func align(n int) int { return (n + alignment - 1) &^ (alignment - 1) }

// encodeRequest lays out a header and its payload in a new buffer of size
// bytes, or more if the payload needs it. The caller has checked the lengths
// of name and uuid.
func encodeRequest(h header, payload []byte, size int) []byte {
	buf := make([]byte, max(size, headerSize+len(payload)))
	// The kernel refuses a higher minor than its own with EINVAL; every
	// kernel accepts 4.0. The flags select the features of a request.
	raw := unix.DmIoctl{
		Version:      [3]uint32{unix.DM_VERSION_MAJOR, 0, 0},
		Data_size:    uint32(len(buf)),
		Data_start:   headerSize,
		Target_count: h.targetCount,
		Flags:        h.flags,
		Event_nr:     h.eventNr,
	}
	copy(raw.Name[:], h.name)
	copy(raw.Uuid[:], h.uuid)
	copy(buf, bytesOf(&raw))
	copy(buf[headerSize:], payload)
	return buf
}

func decodeReply(buf []byte) (reply, error) {
	var r reply
	if len(buf) < headerSize {
		return r, fmt.Errorf("%w: %d bytes are less than a header", errMalformed, len(buf))
	}
	copy(bytesOf(&r.header), buf)
	start, end := uint64(r.header.Data_start), uint64(r.header.Data_size)
	// A command without results leaves data_size just before data_start.
	if end <= start {
		return r, nil
	}
	if start < uint64(unsafe.Offsetof(r.header.Data)) || end > uint64(len(buf)) {
		return r, fmt.Errorf("%w: payload at %d..%d of %d bytes", errMalformed, start, end, len(buf))
	}
	r.payload = buf[start:end]
	return r, nil
}

// encodeTargets lays out a table for DM_TABLE_LOAD, where spec.next counts from the start of its
// own spec.
func encodeTargets(targets []Target) ([]byte, error) {
	size := 0
	for _, t := range targets {
		size += align(specSize + len(t.Params) + 1)
	}
	buf := make([]byte, 0, size)
	for i, t := range targets {
		if t.Type == "" || len(t.Type) > maxTypeLen || hasNUL(t.Type) || hasNUL(t.Params) {
			return nil, fmt.Errorf("target %d (%q): %w", i, t.Type, unix.EINVAL)
		}
		next := align(specSize + len(t.Params) + 1)
		spec := unix.DmTargetSpec{Sector_start: t.Start, Length: t.Length, Next: uint32(next)}
		copy(spec.Target_type[:], t.Type)
		end := len(buf) + next
		buf = append(buf, bytesOf(&spec)...)
		buf = append(buf, t.Params...)
		buf = buf[:end]
	}
	return buf, nil
}

// decodeTargets decodes the payload of DM_TABLE_STATUS, where spec.next counts from the start of
// the first spec.
func decodeTargets(payload []byte, count uint32) ([]Target, error) {
	if uint64(count)*specSize > uint64(len(payload)) {
		return nil, fmt.Errorf("%w: %d targets in %d bytes", errMalformed, count, len(payload))
	}
	targets := make([]Target, 0, count)
	for at := 0; len(targets) < int(count); {
		var spec unix.DmTargetSpec
		if len(payload)-at < specSize {
			return nil, fmt.Errorf("%w: target %d is cut short", errMalformed, len(targets))
		}
		copy(bytesOf(&spec), payload[at:])
		params, err := cstring(payload[at+specSize:])
		if err != nil {
			return nil, fmt.Errorf("target %d: %w", len(targets), err)
		}
		targets = append(targets, Target{
			Start:  spec.Sector_start,
			Length: spec.Length,
			Type:   unix.ByteSliceToString(spec.Target_type[:]),
			Params: params,
		})
		// The last next points past its own string, aligned, which may be beyond the payload.
		if len(targets) == int(count) {
			break
		}
		if uint64(spec.Next) < uint64(at+specSize) || uint64(spec.Next) > uint64(len(payload)) {
			return nil, fmt.Errorf("%w: target %d points to %d", errMalformed, len(targets)-1, spec.Next)
		}
		at = int(spec.Next)
	}
	return targets, nil
}

// decodeNames decodes the payload of DM_LIST_DEVICES. A record has a device number, next (from the
// start of its own record) and a name. Aligned after the name follow the event number (since Linux
// 4.14), the flags, and on request the uuid (both since Linux 5.13).
func decodeNames(payload []byte) ([]Device, error) {
	var devices []Device
	for at := 0; at < len(payload); {
		record, next, err := cutRecord(payload[at:], 8, nameOffset)
		if err != nil {
			return nil, fmt.Errorf("device %d: %w", len(devices), err)
		}
		dev := binary.NativeEndian.Uint64(record)
		if dev == 0 {
			break // no devices
		}
		d := Device{Major: unix.Major(dev), Minor: unix.Minor(dev)}
		if d.Name, err = cstring(record[nameOffset:]); err != nil {
			return nil, fmt.Errorf("device %d: %w", len(devices), err)
		}
		if rest := align(nameOffset + len(d.Name) + 1); rest+8 <= len(record) {
			d.EventNr = binary.NativeEndian.Uint32(record[rest:])
			flags := binary.NativeEndian.Uint32(record[rest+4:])
			if flags&unix.DM_NAME_LIST_FLAG_HAS_UUID != 0 {
				if d.UUID, err = cstring(record[rest+8:]); err != nil {
					return nil, fmt.Errorf("device %s: %w", d.Name, err)
				}
			}
		}
		devices = append(devices, d)
		if next == 0 {
			break
		}
		at += next
	}
	return devices, nil
}

// decodeVersions decodes the payload of DM_LIST_VERSIONS. Its records are next (from the start of
// its own record), a version and a name.
func decodeVersions(payload []byte) (map[string]Version, error) {
	versions := make(map[string]Version)
	for at := 0; at < len(payload); {
		record, next, err := cutRecord(payload[at:], 0, versionSize)
		if err != nil {
			return nil, fmt.Errorf("target type %d: %w", len(versions), err)
		}
		var raw unix.DmTargetVersions
		copy(bytesOf(&raw), record)
		name, err := cstring(record[versionSize:])
		if err != nil {
			return nil, fmt.Errorf("target type %d: %w", len(versions), err)
		}
		versions[name] = raw.Version
		if next == 0 {
			break
		}
		at += next
	}
	return versions, nil
}

// decodeDeps decodes the payload of DM_TABLE_DEPS.
func decodeDeps(payload []byte) ([]uint64, error) {
	if len(payload) == 0 {
		return nil, nil
	}
	var raw unix.DmTargetDeps
	if len(payload) < depsSize {
		return nil, fmt.Errorf("%w: %d bytes of dependencies", errMalformed, len(payload))
	}
	copy(bytesOf(&raw), payload)
	if uint64(raw.Count)*8 > uint64(len(payload)-depsSize) {
		return nil, fmt.Errorf("%w: %d dependencies in %d bytes", errMalformed, raw.Count, len(payload))
	}
	devs := make([]uint64, raw.Count)
	for i := range devs {
		devs[i] = binary.NativeEndian.Uint64(payload[depsSize+8*i:])
	}
	return devs, nil
}

// cutRecord returns the first record of a list linked by a 32-bit next at offset
// nextAt, and that next: 0 in the last record, which extends to the end.
func cutRecord(list []byte, nextAt, minSize int) (record []byte, next int, err error) {
	if len(list) < minSize {
		return nil, 0, fmt.Errorf("%w: record of %d bytes", errMalformed, len(list))
	}
	n := binary.NativeEndian.Uint32(list[nextAt:])
	if n == 0 {
		return list, 0, nil
	}
	if uint64(n) < uint64(minSize) || uint64(n) > uint64(len(list)) {
		return nil, 0, fmt.Errorf("%w: next record at %d of %d bytes", errMalformed, n, len(list))
	}
	return list[:n], int(n), nil
}

// encodeMessage lays out the payload of DM_TARGET_MSG.
func encodeMessage(sector uint64, msg string) []byte {
	raw := unix.DmTargetMsg{Sector: sector}
	return append(append(bytesOf(&raw), msg...), 0)
}

func cstring(b []byte) (string, error) {
	end := bytes.IndexByte(b, 0)
	if end < 0 {
		return "", fmt.Errorf("%w: unterminated string", errMalformed)
	}
	return string(b[:end]), nil
}

func hasNUL(s string) bool { return strings.IndexByte(s, 0) >= 0 }
