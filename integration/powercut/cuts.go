package powercut

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/thinsnap/thinsnap/integration/powercut/model"
	"github.com/thinsnap/thinsnap/integration/vm"
)

// The kinds of work.
const (
	snapshots = "snapshots"
	images    = "images"
)

// bootLimit bounds the time of a boot until the power cut, or until everything is removed.
const bootLimit = 5 * time.Minute

// Summary counts the work and the checks.
type Summary struct {
	Cuts, Points int
	// Operations counts acknowledged operations, including Pulls and Runs.
	Operations, Pulls, Runs int
	// Verified counts the successful comparisons with the model.
	Verified model.Count
	Took     time.Duration
}

// Add adds the counts of another run.
func (s *Summary) Add(o Summary) {
	s.Cuts += o.Cuts
	s.Points += o.Points
	s.Operations += o.Operations
	s.Pulls += o.Pulls
	s.Runs += o.Runs
	s.Verified.Add(o.Verified)
	s.Took += o.Took
}

func (s *Summary) apply(e model.Event) {
	switch {
	case e.Count != nil:
		s.Verified.Add(*e.Count)
	case e.Begin || !e.Operation():
	default:
		s.Operations++
		switch e.Op {
		case model.Pull:
			s.Pulls++
		case model.Run:
			s.Runs++
		}
	}
}

// chain is one history over several boots. thinsnap alone and thinsnap with containerd have separate roots on the disk,
// because containerd would collect other clients' snapshots. Each has a model.
type chain struct {
	*machine
	random *rand.Rand
	models map[string]*model.Model
	used   map[string]bool // kinds of work done so far
	turns  int
}

// Cuts cuts the power the given number of times, and boots the machine once more, which must find all acknowledged
// operations and end in an orderly way. The first kind of work is thinsnap alone, the second with containerd, and later
// ones are random.
func Cuts(ctx context.Context, o Options, cuts int) (Summary, error) {
	var sum Summary
	start := time.Now()
	var pools []string
	if o.DirectLVM {
		pools = []string{"-snapshots-pool", "-images-pool"}
	}
	m, err := newMachine(ctx, o, pools...)
	if err != nil {
		return sum, err
	}
	if err := m.withContainerd(); err != nil {
		return sum, err
	}
	c := &chain{
		machine: m, random: rand.New(rand.NewPCG(o.Seed, 2)),
		models: map[string]*model.Model{snapshots: model.New(), images: model.New()},
		used:   make(map[string]bool),
	}
	for range cuts {
		kind := snapshots
		if c.turns == 1 || c.turns > 1 && c.random.IntN(4) == 0 {
			kind = images
		}
		if err := c.cut(ctx, kind, &sum); err != nil {
			return sum, fmt.Errorf("after %d cuts, with %s: %w", sum.Cuts, kind, err)
		}
		sum.Cuts++
	}
	if err := c.finish(ctx, &sum); err != nil {
		return sum, fmt.Errorf("after the last cut, %w", err)
	}
	sum.Took = time.Since(start)
	return sum, nil
}

// turn returns the workload's arguments for the next turn of that kind, which begins with a comparison with the model.
func (c *chain) turn(kind string, args ...string) ([]string, error) {
	data, err := json.Marshal(c.models[kind])
	if err != nil {
		return nil, fmt.Errorf("write the model: %w", err)
	}
	file := filepath.Join(c.Dir, "model.json")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return nil, fmt.Errorf("write the model: %w", err)
	}
	c.turns++
	c.used[kind] = true
	return append(args, "-kind", kind, "-model", file, "-boot", strconv.Itoa(c.turns)), nil
}

// cut boots the machine, starts the work, and cuts the power.
func (c *chain) cut(ctx context.Context, kind string, sum *Summary) error {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	start := time.Now()
	args, err := c.turn(kind)
	if err != nil {
		return err
	}
	b, err := c.boot(ctx, args...)
	if err != nil {
		return err
	}
	defer b.guest.Kill()
	m := c.models[kind]
	when := draw(c.random, kind)
	before := sum.Operations
	var phase, settled, took string
	apply := func(e model.Event) {
		switch e.Op {
		case model.Phase:
			phase = e.Key
			took += fmt.Sprintf("%s at %.1f s, ", phase, time.Since(start).Seconds())
		case model.Settled:
			settled = fmt.Sprintf("; in doubt had been: %v: %v", m.Doubt, e.Done)
		}
		m.Apply(e)
		sum.apply(e)
	}
	var kill <-chan time.Time
	for kill == nil {
		select {
		case e, ok := <-b.events:
			if !ok {
				return b.failure()
			}
			apply(e)
			if phase == when.phase && sum.Operations-before >= when.operations {
				kill = time.After(when.delay)
			}
		case <-ctx.Done():
			return fmt.Errorf("the workload is too slow: %w\n%s", ctx.Err(), b.log.String())
		}
	}
	for cut := false; ; {
		select {
		case e, ok := <-b.events:
			if ok {
				apply(e)
				continue
			}
			if !cut {
				return b.failure()
			}
			doing := "nothing"
			if m.Doubt != nil {
				doing = m.Doubt.String()
			}
			c.Log("cut %3d: %s: %scut at %.1f s, %d operations acknowledged, under way: %s%s", sum.Cuts+1, kind,
				took, time.Since(start).Seconds(), sum.Operations-before, doing, settled)
			return nil
		case <-kill:
			b.guest.Kill()
			cut = true
		}
	}
}

// finish boots the machine a last time and ends each kind of work in an orderly way.
func (c *chain) finish(ctx context.Context, sum *Summary) error {
	guest, err := vm.Boot(ctx, c.config)
	if err != nil {
		return err
	}
	defer guest.Kill()
	for _, kind := range []string{snapshots, images} {
		if !c.used[kind] {
			continue
		}
		if err := c.end(ctx, guest, kind, sum); err != nil {
			return fmt.Errorf("with %s: %w", kind, err)
		}
	}
	return nil
}

// end ends a kind of work in a running guest.
func (c *chain) end(ctx context.Context, guest *vm.Machine, kind string, sum *Summary) error {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	args, err := c.turn(kind, "-finish")
	if err != nil {
		return err
	}
	b, err := c.start(guest, args...)
	if err != nil {
		return err
	}
	for {
		select {
		case e, ok := <-b.events:
			if ok {
				sum.apply(e)
				continue
			}
			if b.err != nil {
				return b.failure()
			}
			return nil
		case <-ctx.Done():
			return errors.Join(ctx.Err(), errors.New(b.log.String()))
		}
	}
}
