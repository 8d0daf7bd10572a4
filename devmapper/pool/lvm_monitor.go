package pool

import (
	"context"
	"fmt"
	"strings"
)

// Monitor sets whether LVM's dmeventd, too, extends a pool that LVM created for thinsnap. It does
// nothing for other pools. Turn it off while thinsnap extends the pool: dmeventd extends a full
// pool without waiting for its writers, and the kernel may then fail their writes; see
// awaitHeldWrites.
//
// It is not turned on if lvm.conf(5) has activation/monitoring = 0.
func (p *Pool) Monitor(ctx context.Context, on bool) error {
	if err := p.backend.monitor(ctx, on); err != nil {
		return fmt.Errorf("turn dmeventd's monitoring of pool %s %s: %w", p.name, onOff(on), err)
	}
	return nil
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

func (b *lvmBackend) monitor(ctx context.Context, on bool) error {
	option := "n"
	if on {
		option = "y"
		out, err := run(ctx, nil, "lvmconfig", "--typeconfig", "full", "activation/monitoring")
		if err != nil || strings.TrimSpace(string(out)) == "monitoring=0" {
			return err
		}
	}
	g, name, err := b.locate(ctx)
	if err != nil {
		return err
	}
	return g.step("lvchange", "--monitor", option, g.name+"/"+name).do(ctx)
}

func (*loopBackend) monitor(context.Context, bool) error { return nil }

func (existingBackend) monitor(context.Context, bool) error { return nil }
