package powercut

import (
	"math/rand/v2"
	"time"
)

// instant is when the power is cut: so long after so many operations were
// acknowledged in a phase.
type instant struct {
	phase      string
	operations int
	delay      time.Duration
}

// draw spreads the instants over all that happens: one in eight is in the start of
// the daemons, which is where they recover, one in eight in the verification, and
// the others in the work. Their delays are such as the steps take in a guest
// without KVM.
func draw(random *rand.Rand, kind string) instant {
	upTo := func(d time.Duration) time.Duration { return time.Duration(random.Int64N(int64(d))) }
	slow := kind == images
	switch random.IntN(8) {
	case 0:
		if slow {
			return instant{phase: "start", delay: upTo(3 * time.Second)}
		}
		return instant{phase: "start", delay: upTo(time.Second)}
	case 1:
		return instant{phase: "verify", delay: upTo(2 * time.Second)}
	default:
		if slow {
			return instant{phase: "work", operations: random.IntN(4), delay: upTo(3 * time.Second)}
		}
		return instant{phase: "work", operations: random.IntN(30), delay: upTo(400 * time.Millisecond)}
	}
}
