package thin

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/thinsnap/thinsnap/devmapper"
)

// The names of the target types.
const (
	PoolType = "thin-pool"
	Type     = "thin"
)

// The limits of a pool's block size, 64 KiB to 1 GiB, in sectors of 512 bytes. It must be a
// multiple of MinBlockSectors.
const (
	MinBlockSectors = 128
	MaxBlockSectors = 2097152
)

// ID is a volume's number in its pool: the kernel's "dev_id", 24 bits.
type ID uint32

// MaxID is the largest number of a volume.
const MaxID ID = 1<<24 - 1

// errTable is matched by all errors about tables.
var errTable = errors.New("not a valid table")

// PoolTable is the table of a thin-pool.
type PoolTable struct {
	Metadata, Data    string // the devices, as "MAJOR:MINOR" or a path
	BlockSectors      uint32 // 512-byte sectors, 128..2097152, a multiple of 128
	LowWaterBlocks    uint64 // free pool blocks at which an event is raised
	SkipBlockZeroing  bool   // do not zero new blocks
	IgnoreDiscard     bool   // discards do nothing
	NoDiscardPassdown bool   // discards free pool blocks only
	ReadOnly          bool   // the pool does not change its metadata
	ErrorIfNoSpace    bool   // a full pool fails writes at once, instead of queueing them
}

// features pairs the words of the table with the fields, in the order of the kernel.
func (t *PoolTable) features() []feature {
	return []feature{
		{"skip_block_zeroing", &t.SkipBlockZeroing},
		{"ignore_discard", &t.IgnoreDiscard},
		{"no_discard_passdown", &t.NoDiscardPassdown},
		{"read_only", &t.ReadOnly},
		{"error_if_no_space", &t.ErrorIfNoSpace},
	}
}

type feature struct {
	word string
	on   *bool
}

// Target renders the table for a pool over lengthSectors sectors of the data device. Its error
// names a field that the kernel would refuse.
func (t PoolTable) Target(lengthSectors uint64) (devmapper.Target, error) {
	if err := t.validate(); err != nil {
		return devmapper.Target{}, err
	}
	if lengthSectors == 0 {
		return devmapper.Target{}, fmt.Errorf("%w: a pool without sectors", errTable)
	}
	var words []string
	for _, f := range t.features() {
		if *f.on {
			words = append(words, f.word)
		}
	}
	params := fmt.Sprintf("%s %s %d %d %d", t.Metadata, t.Data, t.BlockSectors, t.LowWaterBlocks, len(words))
	return devmapper.Target{
		Length: lengthSectors,
		Type:   PoolType,
		Params: strings.Join(append([]string{params}, words...), " "),
	}, nil
}

func (t PoolTable) validate() error {
	if t.BlockSectors < MinBlockSectors || t.BlockSectors > MaxBlockSectors || t.BlockSectors%MinBlockSectors != 0 {
		return fmt.Errorf("%w: pool block of %d sectors: want a multiple of %d up to %d",
			errTable, t.BlockSectors, MinBlockSectors, MaxBlockSectors)
	}
	for _, device := range []string{t.Metadata, t.Data} {
		if !oneWord(device) {
			return fmt.Errorf("%w: pool device %q", errTable, device)
		}
	}
	return nil
}

// ParsePoolTable parses the parameters of a thin-pool table.
func ParsePoolTable(params string) (PoolTable, error) {
	fields := strings.Fields(params)
	if len(fields) < 4 {
		return PoolTable{}, fmt.Errorf("%w: thin-pool %q: too short", errTable, params)
	}
	t := PoolTable{Metadata: fields[0], Data: fields[1]}
	block, err := strconv.ParseUint(fields[2], 10, 32)
	if err != nil {
		return PoolTable{}, fmt.Errorf("%w: thin-pool %q: block size: %w", errTable, params, err)
	}
	t.BlockSectors = uint32(block)
	if t.LowWaterBlocks, err = strconv.ParseUint(fields[3], 10, 64); err != nil {
		return PoolTable{}, fmt.Errorf("%w: thin-pool %q: low water mark: %w", errTable, params, err)
	}
	if err := t.parseFeatures(fields[4:]); err != nil {
		return PoolTable{}, fmt.Errorf("%w: thin-pool %q: %w", errTable, params, err)
	}
	if err := t.validate(); err != nil {
		return PoolTable{}, err
	}
	return t, nil
}

// parseFeatures parses "<n> <word>…", or nothing.
func (t *PoolTable) parseFeatures(fields []string) error {
	if len(fields) == 0 {
		return nil
	}
	n, err := strconv.ParseUint(fields[0], 10, 8)
	if err != nil {
		return fmt.Errorf("number of features: %w", err)
	}
	words := fields[1:]
	if int(n) != len(words) {
		return fmt.Errorf("%d features announced, %d given", n, len(words))
	}
	for _, word := range words {
		if !t.set(word) {
			return fmt.Errorf("unknown feature %q", word)
		}
	}
	return nil
}

func (t *PoolTable) set(word string) bool {
	for _, f := range t.features() {
		if f.word == word {
			*f.on = true
			return true
		}
	}
	return false
}

// Target renders the table of a thin volume of lengthSectors 512-byte sectors. The pool is given as
// "MAJOR:MINOR" or as a path. Only the table sets a volume's length; the pool does not record it.
func Target(pool string, id ID, lengthSectors uint64) devmapper.Target {
	return devmapper.Target{
		Length: lengthSectors,
		Type:   Type,
		Params: fmt.Sprintf("%s %d", pool, id),
	}
}

// ParseTarget parses the parameters of a thin table: the pool, as "MAJOR:MINOR" if the kernel wrote
// it, and the volume. It ignores an external origin, the third word.
func ParseTarget(params string) (pool string, id ID, err error) {
	fields := strings.Fields(params)
	if len(fields) != 2 && len(fields) != 3 {
		return "", 0, fmt.Errorf("%w: thin %q: want <pool> <id>", errTable, params)
	}
	n, err := strconv.ParseUint(fields[1], 10, 24)
	if err != nil {
		return "", 0, fmt.Errorf("%w: thin %q: id: %w", errTable, params, err)
	}
	return fields[0], ID(n), nil
}

func oneWord(s string) bool {
	return s != "" && len(strings.Fields(s)) == 1 && strings.TrimSpace(s) == s
}
