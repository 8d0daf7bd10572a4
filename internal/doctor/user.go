package doctor

import (
	"context"
	"fmt"
)

func lookAtUser(_ context.Context, m *machine) finding {
	if m.host.uid == 0 {
		return ok("root")
	}
	return problem(fmt.Sprintf("user %d: thinsnap and its commands need root, and so do most of these checks", m.host.uid),
		"sudo thinsnap doctor")
}
