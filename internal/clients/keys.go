package clients

import (
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/thinsnap/thinsnap/metadata"
)

// SplitKey returns the parts of a key of containerd's metadata store, which is
// "NAMESPACE/NUMBER/NAME". The numbers of a name space rise, and none is given twice
// (core/metadata/snapshot.go, createKey). It returns false for any other key.
func SplitKey(key string) (namespace string, number uint64, name string, ok bool) {
	namespace, rest, found := strings.Cut(key, "/")
	digits, name, named := strings.Cut(rest, "/")
	if !found || !named || namespace == "" || name == "" || digits == "" || digits[0] < '1' || digits[0] > '9' {
		return "", 0, "", false
	}
	number, err := strconv.ParseUint(digits, 10, 64)
	return namespace, number, name, err == nil
}

// numbers has a number for each name space.
type numbers map[string]uint64

// raise sets the number of a key if it is the highest.
func (n numbers) raise(key string) {
	if namespace, number, _, ok := SplitKey(key); ok {
		n[namespace] = max(n[namespace], number)
	}
}

// raiseGiven sets the number that containerd has surely given for a snapshot, if it is the highest.
// The number of a layer is given in the transaction in which containerd calls Commit, and is given
// again if containerd is killed before the end of that. bolt has one writer: so it is only the last.
func (n numbers) raiseGiven(s metadata.Snapshot) {
	namespace, number, _, ok := SplitKey(s.Key)
	if ok && s.Kind == snapshots.KindCommitted {
		number--
	}
	if ok {
		n[namespace] = max(n[namespace], number)
	}
}
