package fork

import (
	"iter"

	"github.com/thinsnap/thinsnap/internal/clients"
)

// NewestKey returns thinsnap's key, NAMESPACE/NUMBER/NAME, for a key of containerd, which is only the name. Of several
// keys with that name it returns the one with the highest number; of none, "". The others are of snapshots that
// containerd's collector has not removed yet. keys must not include kept snapshots.
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
