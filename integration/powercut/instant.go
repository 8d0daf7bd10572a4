package powercut

import (
	"math/rand/v2"
	"time"
)

// instant is the time of a power cut: a delay after a number of acknowledged operations in a phase.
type instant struct {
	phase      string
	operations int
	delay      time.Duration
}

// draw spreads the instants over all phases: one in eight during the start of the daemons, where they recover, one in
// eight during the verification, and the others during the work. The delays are typical for the steps in a guest
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
