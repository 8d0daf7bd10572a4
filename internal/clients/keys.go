package clients

import (
	"strconv"
	"strings"
)

// splitKey returns the parts of a key of containerd's metadata store, which is
// "NAMESPACE/NUMBER/NAME". The numbers of a name space rise, and none is given twice
// (core/metadata/snapshot.go, createKey). It returns false for any other key.
func splitKey(key string) (namespace string, number uint64, name string, ok bool) {
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
	if namespace, number, _, ok := splitKey(key); ok {
		n[namespace] = max(n[namespace], number)
	}
}

// lowest returns the numbers that both have, each the lower of the two.
func lowest(a, b numbers) numbers {
	both := make(numbers)
	for namespace, number := range a {
		if other, ok := b[namespace]; ok {
			both[namespace] = min(number, other)
		}
	}
	return both
}
