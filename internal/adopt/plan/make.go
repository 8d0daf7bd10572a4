package plan

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
)

// Make makes a plan. It fails only if no plan can be made at all.
func Make(_ context.Context, o Options) (Plan, error) {
	return Plan{Options: o}, fmt.Errorf("plan an adoption of %s: %w", o.RootPath, errdefs.ErrNotImplemented)
}
