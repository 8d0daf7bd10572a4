package plan

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
)

// Make makes a plan. It reads the pool's committed metadata, so the pool's users must have ended.
//
// The plan includes the obstacles. Make fails only with InvalidArgument if an option is missing or
// wrong, or with the error of the context.
func Make(ctx context.Context, o Options) (Plan, error) {
	for option, value := range map[string]string{
		"containerd's root": o.ContainerdRoot, "root_path": o.RootPath, "pool_name": o.Pool, "the built-in's name": o.From,
		"the name of the proxy": o.Proxy, "thinsnap's root": o.Config.Root,
	} {
		if value == "" {
			return Plan{Options: o}, fmt.Errorf("plan an adoption: %s is not given: %w", option, errdefs.ErrInvalidArgument)
		}
	}
	if o.From == o.Proxy {
		return Plan{Options: o}, fmt.Errorf("plan an adoption: thinsnap cannot have the name %q of the built-in: %w", o.From,
			errdefs.ErrInvalidArgument)
	}
	g := &gatherer{ctx: ctx, input: input{options: o, now: time.Now().UTC(), poolID: rand.Text()}}
	g.gather()
	if err := ctx.Err(); err != nil {
		return Plan{Options: o}, fmt.Errorf("plan an adoption: %w", err)
	}
	return judge(g.input), nil
}
