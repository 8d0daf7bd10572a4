package thin

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Mode is the operating mode of a pool.
type Mode string

// The modes, in the kernel's words.
const (
	ModeReadWrite      Mode = "rw"
	ModeReadOnly       Mode = "ro"                // no metadata changes: a commit failed, or metadata space is used up
	ModeOutOfDataSpace Mode = "out_of_data_space" // writes that need a new block wait or fail
	ModeFail           Mode = "Fail"              // no I/O at all
	ModeError          Mode = "Error"             // the kernel could not read its own counters
)

// Discard is how a pool handles discards.
type Discard string

// The ways to handle discards, in the kernel's words.
const (
	DiscardPassdown   Discard = "discard_passdown"    // frees blocks and passes discards to the data device
	DiscardNoPassdown Discard = "no_discard_passdown" // frees blocks
	DiscardIgnore     Discard = "ignore_discard"
)

// errStatus is matched by all errors about status lines.
var errStatus = errors.New("not a valid status")

// PoolStatus is a thin-pool's status line. In the modes Fail and Error the
// kernel reports only the mode.
type PoolStatus struct {
	Mode             Mode
	TransactionID    uint64
	MetadataUsed     uint64 // blocks of 4 KiB
	MetadataTotal    uint64 // blocks of 4 KiB
	DataUsed         uint64 // pool blocks
	DataTotal        uint64 // pool blocks
	HeldRoot         uint64 // metadata block of the metadata snapshot, 0 if there is none
	Discard          Discard
	QueueIfNoSpace   bool   // a full pool queues writes (for a time); otherwise it fails them
	NeedsCheck       bool   // the metadata must be checked (thin_check) before it is written again
	MetadataLowWater uint64 // free blocks of 4 KiB at which an event is raised
	// Asked is the time of Pool's query. ParsePoolStatus does not set it.
	Asked time.Time
}

// Changeable reports whether the pool accepts messages that change it.
func (s PoolStatus) Changeable() bool {
	return s.Mode == ModeReadWrite || s.Mode == ModeOutOfDataSpace
}

// MetadataFull reports whether the pool is read-only only because its metadata has no free space.
// An extension ends that at once (PM_OUT_OF_METADATA_SPACE of drivers/md/dm-thin.c): the kernel has
// a reserve of metadata blocks for it, which the status counts as used.
func (s PoolStatus) MetadataFull() bool {
	return s.Mode == ModeReadOnly && !s.NeedsCheck && s.MetadataTotal > 0 && s.MetadataUsed >= s.MetadataTotal
}

// HoldsBackNeedlessly reports whether the pool holds back writes as if it were full, although it
// has free blocks. Loading its table again ends that.
func (s PoolStatus) HoldsBackNeedlessly() bool {
	return s.Mode == ModeOutOfDataSpace && s.DataUsed < s.DataTotal
}

// String renders the status line as the kernel does.
func (s PoolStatus) String() string {
	if s.Mode == ModeFail || s.Mode == ModeError {
		return string(s.Mode)
	}
	held, full, check := "-", "error_if_no_space", "-"
	if s.HeldRoot != 0 {
		held = strconv.FormatUint(s.HeldRoot, 10)
	}
	if s.QueueIfNoSpace {
		full = "queue_if_no_space"
	}
	if s.NeedsCheck {
		check = "needs_check"
	}
	return fmt.Sprintf("%d %d/%d %d/%d %s %s %s %s %s %d", s.TransactionID, s.MetadataUsed, s.MetadataTotal,
		s.DataUsed, s.DataTotal, held, s.Mode, s.Discard, full, check, s.MetadataLowWater)
}

// ParsePoolStatus parses a thin-pool's status line. It ignores words that later kernels append.
// NeedsCheck and MetadataLowWater may be missing, as on older kernels.
func ParsePoolStatus(line string) (PoolStatus, error) {
	fields := strings.Fields(line)
	if len(fields) == 1 && (fields[0] == string(ModeFail) || fields[0] == string(ModeError)) {
		return PoolStatus{Mode: Mode(fields[0])}, nil
	}
	if len(fields) < 7 {
		return PoolStatus{}, fmt.Errorf("%w: thin-pool %q: too short", errStatus, line)
	}
	var s PoolStatus
	var errs [7]error
	s.TransactionID, errs[0] = strconv.ParseUint(fields[0], 10, 64)
	s.MetadataUsed, s.MetadataTotal, errs[1] = parseRatio(fields[1])
	s.DataUsed, s.DataTotal, errs[2] = parseRatio(fields[2])
	s.HeldRoot, errs[3] = parseOrDash(fields[3])
	s.Mode, errs[4] = oneOf(fields[4], ModeReadWrite, ModeReadOnly, ModeOutOfDataSpace)
	s.Discard, errs[5] = oneOf(fields[5], DiscardPassdown, DiscardNoPassdown, DiscardIgnore)
	var full string
	full, errs[6] = oneOf(fields[6], "queue_if_no_space", "error_if_no_space")
	s.QueueIfNoSpace = full == "queue_if_no_space"
	var check string
	var checkErr, lowErr error
	if len(fields) > 7 {
		check, checkErr = oneOf(fields[7], "needs_check", "-")
		s.NeedsCheck = check == "needs_check"
	}
	if len(fields) > 8 {
		s.MetadataLowWater, lowErr = strconv.ParseUint(fields[8], 10, 64)
	}
	if err := errors.Join(append(errs[:], checkErr, lowErr)...); err != nil {
		return PoolStatus{}, fmt.Errorf("%w: thin-pool %q: %w", errStatus, line, err)
	}
	return s, nil
}

// Status is a thin volume's status line. Failed is set if the kernel could not read the volume's
// counters, or if its pool is in mode Fail; the other fields are then 0.
type Status struct {
	MappedSectors uint64 // 512-byte sectors with a block in the pool, shared or not
	Highest       uint64 // the last mapped sector
	HasHighest    bool   // false if no sector is mapped
	Failed        bool
}

// ParseStatus parses a thin volume's status line.
func ParseStatus(line string) (Status, error) {
	fields := strings.Fields(line)
	switch {
	case len(fields) == 1 && fields[0] == "-":
		return Status{}, nil // not started yet
	case len(fields) == 1 && (fields[0] == string(ModeFail) || fields[0] == string(ModeError)):
		return Status{Failed: true}, nil
	case len(fields) < 2:
		return Status{}, fmt.Errorf("%w: thin %q: too short", errStatus, line)
	}
	mapped, mappedErr := strconv.ParseUint(fields[0], 10, 64)
	highest, highestErr := parseOrDash(fields[1])
	if err := errors.Join(mappedErr, highestErr); err != nil {
		return Status{}, fmt.Errorf("%w: thin %q: %w", errStatus, line, err)
	}
	return Status{MappedSectors: mapped, Highest: highest, HasHighest: fields[1] != "-"}, nil
}

func parseRatio(s string) (used, total uint64, err error) {
	a, b, ok := strings.Cut(s, "/")
	if !ok {
		return 0, 0, fmt.Errorf("%q is not <used>/<total>", s)
	}
	used, usedErr := strconv.ParseUint(a, 10, 64)
	total, totalErr := strconv.ParseUint(b, 10, 64)
	return used, total, errors.Join(usedErr, totalErr)
}

func parseOrDash(s string) (uint64, error) {
	if s == "-" {
		return 0, nil
	}
	return strconv.ParseUint(s, 10, 64)
}

func oneOf[T ~string](word string, known ...T) (T, error) {
	for _, k := range known {
		if word == string(k) {
			return k, nil
		}
	}
	return "", fmt.Errorf("unknown word %q", word)
}
