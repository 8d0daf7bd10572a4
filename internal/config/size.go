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

// Size is a number of bytes, from 0 to 2^63-1. In the file it is a string with a binary unit, such
// as "64KiB" or "10G", or a plain number of bytes. Units are powers of 1024, with or without the "i".
type Size uint64

// UnmarshalText parses a size. An error quotes the text.
func (s *Size) UnmarshalText(text []byte) error {
	n, err := units.RAMInBytes(string(text))
	// go-units computes in floating point: a size that overflows int64 may become negative.
	if err != nil || n < 0 {
		return fmt.Errorf("%q is not a size: use a number with a unit, such as \"64KiB\" or \"10GiB\"", text)
	}
	*s = Size(n)
	return nil
}

// MarshalText uses the largest unit in which the size is a whole number, so it is exact.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// String returns the text of MarshalText.
func (s Size) String() string {
	n, unit := uint64(s), 0
	names := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	for n != 0 && n%1024 == 0 && unit < len(names)-1 {
		n /= 1024
		unit++
	}
	return strconv.FormatUint(n, 10) + names[unit]
}

// Percent is a percentage. In the file it is a string such as "10%", or a plain number.
type Percent uint8

// UnmarshalText parses "10%" or "10". An error quotes the text.
func (p *Percent) UnmarshalText(text []byte) error {
	n, err := strconv.ParseUint(strings.TrimSuffix(string(text), "%"), 10, 8)
	if err != nil {
		return fmt.Errorf("%q is not a percentage: use a whole number with a percent sign, such as \"10%%\"", text)
	}
	*p = Percent(n)
	return nil
}

// MarshalText returns the number with a percent sign.
func (p Percent) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// String returns the text of MarshalText.
func (p Percent) String() string { return strconv.Itoa(int(p)) + "%" }
