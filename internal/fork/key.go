package fork

import (
	"iter"

	"github.com/thinsnap/thinsnap/internal/clients"
)

// NewestKey returns thinsnap's key of a snapshot that containerd knows by its own, among all keys of thinsnap that are
// not kept: the one with the highest number. The others are of snapshots that containerd could not create, and has not
// collected yet. It returns "" if there is none.
func NewestKey(keys iter.Seq[string], namespace, containerdKey string) string {
	var newest string
	var highest uint64
	for key := range keys {
		in, number, name, ok := clients.SplitKey(key)
		if ok && in == namespace && name == containerdKey && number > highest {
			newest, highest = key, number
		}
	}
	return newest
}
