// Command kerneltest runs the tests that need device-mapper: those in files named *_kernel_test.go. It uses as many
// guests as the host has processors and memory for, or the host itself if it has root and dm-thin. It writes the events
// to standard output like `go test -json`.
//
// After a failed package, the next one gets a new guest, because leftovers of the failure could make it fail, too.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/thinsnap/thinsnap/integration/vm"
)

type options struct {
	run     string
	short   bool
	race    bool
	count   int
	timeout time.Duration
	needs   bool
	config  vm.Config
}

func main() {
	var opts options
	flag.StringVar(&opts.run, "run", "", "run only kernel tests that match this expression")
	flag.BoolVar(&opts.short, "short", false, "run the tests with -test.short")
	flag.BoolVar(&opts.race, "race", false, "build the tests with the race detector")
	flag.IntVar(&opts.count, "count", 1, "run each test this many times")
	flag.DurationVar(&opts.timeout, "timeout", 25*time.Minute, "time limit for each package")
	flag.BoolVar(&opts.config.Udev, "udev", false, "run systemd-udevd in the guest")
	flag.IntVar(&opts.config.CPUs, "cpus", 1, "each guest's processors; as many guests run as the host has processors for")
	flag.IntVar(&opts.config.MemoryMiB, "memory", 0, "each guest's memory in MiB")
	flag.BoolVar(&opts.needs, "needs", false, "only print the Makefile's targets that the tests need")
	flag.Parse()
	if _, err := regexp.Compile(opts.run); err != nil {
		fmt.Fprintln(os.Stderr, "kerneltest: -run:", err)
		os.Exit(2)
	}
	patterns := flag.Args()
	if len(patterns) == 0 {
		patterns = []string{"./..."}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, opts, patterns); err != nil {
		fmt.Fprintln(os.Stderr, "kerneltest:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, opts options, patterns []string) error {
	packages, err := findPackages(ctx, patterns, opts.run)
	if err != nil {
		return err
	}
	if len(packages) == 0 {
		return fmt.Errorf("no kernel test of %s matches -run %q", strings.Join(patterns, " "), opts.run)
	}
	if opts.needs {
		fmt.Println(strings.Join(needed(packages), " "))
		return nil
	}
	dir, err := os.MkdirTemp("", "kerneltest")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	// Before the guest boots: it may see a mixed state of files that change later.
	if err := build(ctx, dir, opts.race, packages); err != nil {
		return err
	}
	guests, err := guestsAtATime(opts.config.CPUs, len(packages))
	if err != nil {
		return err
	}
	slices.SortStableFunc(packages, longestFirst)
	return inTurn(ctx, packages, guests, func(i int) *place {
		return &place{config: opts.config, disks: filepath.Join(dir, fmt.Sprintf("disk-%d", i))}
	}, func(at *place, p testPackage) error { return runPackage(ctx, at, opts, p) })
}

// build builds the packages' test programs in a directory. One command links several at a time, and links faster
// without DWARF.
func build(ctx context.Context, dir string, race bool, packages []testPackage) error {
	args := []string{"test", "-c", "-ldflags=-w", "-o", dir + "/"}
	if race {
		args = append(args, "-race")
	}
	for i := range packages {
		p := &packages[i]
		p.binary = filepath.Join(dir, path.Base(p.ImportPath)+".test") // go rejects two of the same name
		args = append(args, p.ImportPath)
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build the tests: %w", err)
	}
	return nil
}
