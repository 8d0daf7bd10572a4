package setup

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// setMember sets a member of the object at a path in a JSON text, and keeps the rest of the text:
// it replaces the value, or adds a line at the start of the object.
func setMember(text []byte, path []string, name string, value any) ([]byte, error) {
	encoded, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	begin, valueAt, valueEnd, isEmpty, err := findMember(text, path, name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	if valueEnd > 0 {
		return slices.Concat(text[:valueAt], encoded, text[valueEnd:]), nil
	}
	line := fmt.Sprintf("\n%s%q: %s", strings.Repeat("  ", len(path)+1), name, encoded)
	if !isEmpty {
		line += ","
	}
	return slices.Concat(text[:begin], []byte(line), text[begin:]), nil
}

// findMember returns the position after the object's opening brace, and the position of the
// member's value. valueEnd is 0 if there is no such member.
func findMember(text []byte, path []string, name string) (begin, valueAt, valueEnd int, isEmpty bool, err error) {
	d := json.NewDecoder(bytes.NewReader(text))
	if _, err := d.Token(); err != nil {
		return 0, 0, 0, false, err
	}
	for _, part := range path {
		if err := skipTo(d, part); err != nil {
			return 0, 0, 0, false, err
		}
		if _, err := d.Token(); err != nil {
			return 0, 0, 0, false, err
		}
	}
	begin, isEmpty = int(d.InputOffset()), !d.More()
	if err := skipTo(d, name); err != nil {
		return begin, 0, 0, isEmpty, nil //nolint:nilerr // no such member
	}
	var raw json.RawMessage
	if err := d.Decode(&raw); err != nil {
		return 0, 0, 0, false, err
	}
	valueEnd = int(d.InputOffset())
	return begin, valueEnd - len(raw), valueEnd, isEmpty, nil
}

// skipTo reads the members of an object up to the value of the named one.
func skipTo(d *json.Decoder, name string) error {
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return err
		}
		if key == name {
			return nil
		}
		var skipped json.RawMessage
		if err := d.Decode(&skipped); err != nil {
			return err
		}
	}
	return io.EOF
}
