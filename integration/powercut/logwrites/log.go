// Package logwrites reads the log of device-mapper's log-writes target, and computes the possible states of the device
// after a power cut.
package logwrites

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Flags of an Entry: the LOG_*_FLAG in drivers/md/dm-log-writes.c.
const (
	Flush   = 1 << 0
	FUA     = 1 << 1
	Discard = 1 << 2
	mark    = 1 << 3
)

const (
	magic      = 0x6a736677736872
	version    = 1
	headerSize = 4 * 8 // bytes of struct log_write_entry
)

// Entry is an operation on the device.
type Entry struct {
	Flags uint64
	// Offset and Length are the bytes of the device that were written or discarded.
	Offset, Length int64
	// Mark is the text of a mark, which has no bytes.
	Mark string

	data int64 // offset of the written data in the log
}

// Log has the entries in an order in which they reached stable storage. A write comes before the first flush that began
// after the write was complete. A write with FUA comes where it was complete.
type Log struct {
	Entries []Entry
	device  io.ReaderAt
}

// Read reads the complete log on a device.
func Read(device io.ReaderAt) (*Log, error) {
	// struct log_write_super
	super := make([]byte, 28)
	if _, err := device.ReadAt(super, 0); err != nil {
		return nil, fmt.Errorf("read the log's superblock: %w", err)
	}
	le := binary.LittleEndian
	if m, v := le.Uint64(super), le.Uint64(super[8:]); m != magic || v != version {
		return nil, fmt.Errorf("no log of writes: magic %#x, version %d", m, v)
	}
	count, sector := le.Uint64(super[16:]), int64(le.Uint32(super[24:]))
	if sector < 512 {
		return nil, fmt.Errorf("a log with sectors of %d bytes", sector)
	}
	log := &Log{device: device}
	at := sector
	block := make([]byte, sector)
	for range count {
		if _, err := device.ReadAt(block, at); err != nil {
			return nil, fmt.Errorf("read entry %d of the log: %w", len(log.Entries), err)
		}
		at += sector
		e := Entry{Offset: int64(le.Uint64(block)) * sector, Length: int64(le.Uint64(block[8:])) * sector,
			Flags: le.Uint64(block[16:]), data: at}
		switch {
		case e.Flags&mark != 0:
			length := le.Uint64(block[24:])
			if length > uint64(sector-headerSize) {
				return nil, fmt.Errorf("entry %d of the log: %w", len(log.Entries), errors.New("the mark is longer than its block"))
			}
			e.Mark = string(block[headerSize : headerSize+length])
		case e.Flags&Discard == 0:
			at += e.Length
		}
		log.Entries = append(log.Entries, e)
	}
	return log, nil
}

// cached reports whether a power cut before the next flush could lose the entry's write.
func (e Entry) cached() bool { return e.Flags&FUA == 0 && e.Length > 0 }

// Apply applies an entry to a device. Discarded bytes read as zeroes.
func (l *Log) Apply(e Entry, device io.WriterAt) error {
	if e.Length == 0 {
		return nil
	}
	const piece = 1 << 20
	buf := make([]byte, min(piece, e.Length))
	for done := int64(0); done < e.Length; {
		part := buf[:min(int64(len(buf)), e.Length-done)]
		if e.Flags&Discard == 0 {
			if _, err := l.device.ReadAt(part, e.data+done); err != nil {
				return fmt.Errorf("read %d bytes of the log at %d: %w", len(part), e.data+done, err)
			}
		}
		if _, err := device.WriteAt(part, e.Offset+done); err != nil {
			return fmt.Errorf("replay: %w", err)
		}
		done += int64(len(part))
	}
	return nil
}
