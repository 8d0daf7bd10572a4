package fork

import (
	"iter"

	"github.com/thinsnap/thinsnap/internal/clients"
)

// NewestKey returns thinsnap's key for a key of containerd: of all keys with that name, the one with the highest
// number, or "". The others are of snapshots that containerd's collector has not removed yet. keys must not
// include kept snapshots.
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
