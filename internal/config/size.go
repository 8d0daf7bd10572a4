package config

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/docker/go-units"
)

const (
	kib Size = 1 << 10
	mib Size = 1 << 20
	gib Size = 1 << 30
)

// Size is a number of bytes, from 0 to 2^63-1. In the file it is a string with a binary unit, such as "64KiB", "10GiB" or
// "10G" (units are powers of 1024 with and without the "i"), or a plain number of bytes.
type Size uint64

// UnmarshalText reads a size; an error repeats the text.
func (s *Size) UnmarshalText(text []byte) error {
	n, err := units.RAMInBytes(string(text))
	// go-units computes in floating point: what does not fit into an int64 may come out negative.
	if err != nil || n < 0 {
		return fmt.Errorf("%q is not a size: want a number with a unit, such as \"64KiB\" or \"10GiB\"", text)
	}
	*s = Size(n)
	return nil
}

// MarshalText gives the largest unit in which the size is a whole number, so that reading it back loses nothing.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// String is the text of MarshalText.
func (s Size) String() string {
	n, unit := uint64(s), 0
	names := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	for n != 0 && n%1024 == 0 && unit < len(names)-1 {
		n /= 1024
		unit++
	}
	return strconv.FormatUint(n, 10) + names[unit]
}

// Percent is a whole share in hundredths. In the file it is a string such as "10%", or a plain number.
type Percent uint8

// UnmarshalText reads "10%", or "10" for the same; an error repeats the text.
func (p *Percent) UnmarshalText(text []byte) error {
	n, err := strconv.ParseUint(strings.TrimSuffix(string(text), "%"), 10, 8)
	if err != nil {
		return fmt.Errorf("%q is not a percentage: want a whole number with a percent sign, such as \"10%%\"", text)
	}
	*p = Percent(n)
	return nil
}

// MarshalText gives the number with a percent sign.
func (p Percent) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// String is the text of MarshalText.
func (p Percent) String() string { return strconv.Itoa(int(p)) + "%" }
