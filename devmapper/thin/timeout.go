package thin

import (
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	// timeoutFile has the module parameter in seconds, which may change at any time.
	timeoutFile = "/sys/module/dm_thin_pool/parameters/no_space_timeout"
	// defaultTimeout is NO_SPACE_TIMEOUT_SECS of drivers/md/dm-thin.c.
	defaultTimeout = 60 * time.Second
)

// NoSpaceTimeout returns how long the kernel holds writes to a full pool back before it fails them,
// unless the pool fails them at once (no_space_timeout of dm_thin_pool); 0 for without end.
func NoSpaceTimeout() time.Duration {
	b, err := os.ReadFile(timeoutFile)
	if err != nil {
		return defaultTimeout
	}
	seconds, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 31)
	if err != nil {
		return defaultTimeout
	}
	return time.Duration(seconds) * time.Second
}
