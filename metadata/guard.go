package metadata

import (
	"fmt"

	"github.com/thinsnap/thinsnap/metadata/boltfile"
)

// guard calls fn, and returns an error if fn panics because of a damaged or unreadable page. Open
// checks only the pages that it needs, because checking all of them takes time in proportion to the
// store. Other panics continue.
func (s *Store) guard(fn func() error) error {
	cause, err := boltfile.Guard(fn)
	if cause != nil {
		return fmt.Errorf("read %s: %w", s.path, pageError(cause))
	}
	return err
}
