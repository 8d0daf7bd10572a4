package clients

import (
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/thinsnap/thinsnap/metadata"
)

// SplitKey splits a key of containerd's metadata store, "NAMESPACE/NUMBER/NAME". The numbers of a
// namespace rise while it exists (core/metadata/snapshot.go, createKey). For any other key it returns
// false.
func SplitKey(key string) (namespace string, number uint64, name string, ok bool) {
	namespace, rest, found := strings.Cut(key, "/")
	digits, name, named := strings.Cut(rest, "/")
	if !found || !named || namespace == "" || name == "" || digits == "" || digits[0] < '1' || digits[0] > '9' {
		return "", 0, "", false
	}
	number, err := strconv.ParseUint(digits, 10, 64)
	return namespace, number, name, err == nil
}

// numbers maps namespaces to numbers.
type numbers map[string]uint64

// raise sets the number of a key's namespace to the key's, if that is higher.
func (n numbers) raise(key string) {
	if namespace, number, _, ok := SplitKey(key); ok {
		n[namespace] = max(n[namespace], number)
	}
}

// raiseUsed raises the number to the highest that a snapshot proves to be used: containerd does not
// give it again. For a layer that is the number before its own. containerd gives a layer's number
// in the transaction of the Commit, and gives it again if it is killed before the end. bbolt has one
// writer, so that loses at most one number.
func (n numbers) raiseUsed(s metadata.Snapshot) {
	namespace, number, _, ok := SplitKey(s.Key)
	if ok && s.Kind == snapshots.KindCommitted {
		number--
	}
	if ok {
		n[namespace] = max(n[namespace], number)
	}
}
