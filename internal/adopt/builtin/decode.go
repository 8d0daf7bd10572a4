package builtin

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

const remedyDamaged = "run `bbolt check` on it, and restore a backup"

// unknown returns the error for data that no known containerd writes.
func unknown(format string, args ...any) error {
	return fmt.Errorf(format+": containerd 1.3 to 2.4 does not write this: try a newer thinsnap: %w",
		append(args, errdefs.ErrNotImplemented)...)
}

// damaged returns the error for data that contradicts itself.
func damaged(format string, args ...any) error {
	return fmt.Errorf(format+": the file is damaged: "+remedyDamaged+": %w", append(args, errdefs.ErrDataLoss)...)
}

func decodeUvarint(b []byte) (uint64, error) {
	v, n := binary.Uvarint(b)
	if n <= 0 || n != len(b) {
		return 0, unknown("% x is not a number", clip(b))
	}
	return v, nil
}

// decodeID decodes the id of a snapshot. The first id is 1, the first value of NextSequence.
func decodeID(b []byte) (uint64, error) {
	v, err := decodeUvarint(b)
	if err == nil && v == 0 {
		err = unknown("the number is 0")
	}
	return v, err
}

// decodeSize decodes a number of bytes or inodes.
func decodeSize(b []byte) (int64, error) {
	v, n := binary.Varint(b)
	if n <= 0 || n != len(b) || v < 0 {
		return 0, unknown("% x is not a size", clip(b))
	}
	return v, nil
}

func decodeKind(b []byte) (snapshots.Kind, error) {
	if len(b) == 1 {
		switch k := snapshots.Kind(b[0]); k {
		case snapshots.KindView, snapshots.KindActive, snapshots.KindCommitted:
			return k, nil
		}
	}
	return 0, unknown("% x is not a kind of snapshot", clip(b))
}

func decodeTime(b []byte) (time.Time, error) {
	var t time.Time
	if err := t.UnmarshalBinary(b); err != nil {
		return time.Time{}, unknown("% x: %v", clip(b), err)
	}
	return t.UTC(), nil
}

// A link is a key of v1/parents.
type link struct{ parent, child uint64 }

func decodeLink(b []byte) (link, error) {
	parent, n := binary.Uvarint(b)
	if n <= 0 || n >= len(b) || b[n] != 0 {
		return link{}, unknown("% x is not a pair of numbers", clip(b))
	}
	child, err := decodeUvarint(b[n+1:])
	return link{parent, child}, err
}

// deviceRecord is containerd's DeviceInfo (device_info.go). containerd always writes every field.
type deviceRecord struct {
	ID     *uint32 `json:"device_id"`
	Bytes  *uint64 `json:"size"`
	Name   *string `json:"name"`
	Parent *string `json:"parent_name"`
	State  *uint64 `json:"state"`
	Error  *string `json:"error"`
}

func decodeDevice(name string, b []byte) (Device, error) {
	var r deviceRecord
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return Device{}, unknown("its record: %v", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Device{}, unknown("its record is followed by other data")
	}
	switch {
	case r.ID == nil, r.Bytes == nil, r.Name == nil, r.Parent == nil, r.State == nil, r.Error == nil:
		return Device{}, unknown("its record lacks a field")
	case *r.Name != name:
		return Device{}, damaged("its record has the name %q", *r.Name)
	case *r.ID == 0, *r.ID > maxDeviceID:
		return Device{}, unknown("its device id is %d", *r.ID)
	case *r.State > uint64(StateFaulty):
		return Device{}, unknown("its state is %d", *r.State)
	}
	return Device{Name: name, ID: *r.ID, Bytes: *r.Bytes, Parent: *r.Parent, State: State(*r.State), Error: *r.Error}, nil
}

func decodeDeviceID(b []byte) (uint32, error) {
	id, err := strconv.ParseUint(string(b), 10, 32)
	if err != nil || id == 0 || id > maxDeviceID || strconv.FormatUint(id, 10) != string(b) {
		return 0, unknown("%q is not a device id", clip(b))
	}
	return uint32(id), nil
}

func decodeIDState(b []byte) (IDState, error) {
	if len(b) != 1 || b[0] > byte(Faulty) {
		return 0, unknown("% x is not its state", clip(b))
	}
	return IDState(b[0]), nil
}

// clip shortens data for a message.
func clip(b []byte) []byte { return b[:min(len(b), 64)] }
