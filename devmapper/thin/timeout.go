package thin

import (
	"strconv"
	"time"

	"github.com/thinsnap/thinsnap/devmapper"
)

const (
	// timeoutFile is the module parameter in seconds, which may change at any time.
	timeoutFile = "/sys/module/dm_thin_pool/parameters/no_space_timeout"
	// defaultTimeout is NO_SPACE_TIMEOUT_SECS of drivers/md/dm-thin.c.
	defaultTimeout = 60 * time.Second
)

// NoSpaceTimeout returns no_space_timeout of dm_thin_pool: how long the kernel holds back writes to
// a full pool before it fails them; 0 means forever. PoolTable.ErrorIfNoSpace overrides it.
func NoSpaceTimeout() time.Duration {
	text, err := devmapper.ReadAttribute(timeoutFile)
	if err != nil {
		return defaultTimeout
	}
	seconds, err := strconv.ParseUint(text, 10, 31)
	if err != nil {
		return defaultTimeout
	}
	return time.Duration(seconds) * time.Second
}
