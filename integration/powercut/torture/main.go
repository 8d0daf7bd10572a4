// Command torture cuts the power of a machine many times, and prints the counts of operations and of checks. It fails
// if an operation was lost.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"text/tabwriter"
	"time"

	"github.com/thinsnap/thinsnap/integration/powercut"
)

func main() {
	o := powercut.Options{Repository: ".", Log: func(format string, args ...any) {
		fmt.Printf(time.Now().Format("15:04:05 ")+format+"\n", args...)
	}}
	cuts := flag.Int("cuts", 200, "number of power cuts")
	points := flag.Int("points", 200, "number of points at which the recorded writes are replayed")
	flag.StringVar(&o.Filesystem, "filesystem", "ext4", "file system of the snapshots")
	flag.BoolVar(&o.DirectLVM, "direct-lvm", false,
		"cut the power of pools that LVM made on disks of their own; the replay always uses files")
	flag.Uint64Var(&o.Seed, "seed", uint64(time.Now().UnixNano()), "seed of the operations and of the power cuts")
	flag.IntVar(&o.CPUs, "cpus", 2, "processors of the guest")
	flag.StringVar(&o.Dir, "dir", "", "`directory` for the guest's disks; it is kept if an operation is lost")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, o, *cuts, *points); err != nil {
		fmt.Fprintf(os.Stderr, "torture: seed %d: %v\n", o.Seed, err)
		os.Exit(1)
	}
}

const pointsAtOnce = 50

func run(ctx context.Context, o powercut.Options, cuts, points int) error {
	if o.Dir == "" {
		dir, err := os.MkdirTemp("", "torture")
		if err != nil {
			return err
		}
		o.Dir = dir
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return err
	}
	o.Log("seed %d, snapshots with %s, disks in %s", o.Seed, o.Filesystem, o.Dir)
	seed := o.Seed
	all, err := torture(ctx, o, cuts, points)
	if err != nil && !errors.Is(err, context.Canceled) {
		return err // and keep the disks
	}
	table(seed, all)
	return errors.Join(err, os.RemoveAll(o.Dir))
}

// torture returns the summary, also if it is interrupted.
func torture(ctx context.Context, o powercut.Options, cuts, points int) (all powercut.Summary, err error) {
	start := time.Now()
	if cuts > 0 {
		all, err = powercut.Cuts(ctx, o, cuts)
	}
	for left := points; left > 0 && err == nil; left -= pointsAtOnce {
		var sum powercut.Summary
		if sum, err = powercut.Points(ctx, o, min(left, pointsAtOnce)); err != nil {
			err = fmt.Errorf("a record with seed %d: %w", o.Seed, err)
		}
		all.Add(sum)
		o.Seed++
	}
	all.Took = time.Since(start)
	return all, err
}

func table(seed uint64, s powercut.Summary) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, row := range []struct {
		what  string
		value any
	}{
		{"seed", seed},
		{"power cuts", s.Cuts},
		{"points replayed", s.Points},
		{"operations acknowledged", s.Operations},
		{"of them pulls", s.Pulls},
		{"of them runs", s.Runs},
		{"snapshots verified", s.Verified.Snapshots},
		{"images verified", s.Verified.Images},
		{"containers verified", s.Verified.Containers},
		{"contents digested", s.Verified.Digests},
		{"lost", 0},
		{"time", s.Took.Round(time.Second)},
	} {
		fmt.Fprintf(w, "%s\t%v\t\n", row.what, row.value)
	}
	_ = w.Flush() // to the terminal
}
