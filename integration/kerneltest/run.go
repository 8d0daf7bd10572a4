package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"github.com/thinsnap/thinsnap/integration/vm"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// runPackage runs one package's kernel tests and writes their events. The error is nil, the tests' failure, or the
// guest's.
//
// The emulator sometimes runs code that the guest's kernel has replaced. The kernel then crashes, or hangs in code
// unrelated to device-mapper. Only then the tests run again, once, without the events of the first run.
func runPackage(ctx context.Context, at *place, opts options, p testPackage) error {
	var events bytes.Buffer
	err := tryPackage(ctx, at, opts, p, &events)
	if emulatorFailed(at, err) {
		fmt.Fprintf(os.Stderr, "kerneltest: %s runs again, from the beginning: %v\n", p.ImportPath, err)
		events.Reset()
		err = tryPackage(ctx, at, opts, p, &events)
	}
	_, writeErr := os.Stdout.Write(events.Bytes()) // one call, so that the events of two packages do not mix
	return errors.Join(err, writeErr)
}

func emulatorFailed(at *place, err error) bool {
	if at.machine == nil || at.machine.Accel() != "tcg" {
		return false
	}
	return errors.Is(err, vm.ErrStaleCode) || errors.Is(err, vm.ErrGuestHung) && !strings.Contains(err.Error(), "[dm_")
}

func tryPackage(ctx context.Context, at *place, opts options, p testPackage, out io.Writer) error {
	where, err := at.get(ctx)
	if err != nil {
		return err
	}
	// The guest's root may have another home than the owner of the cache.
	cache, err := vm.CacheDir()
	if err != nil {
		return err
	}
	events := exec.CommandContext(ctx, "go", "tool", "test2json", "-t", "-p", p.ImportPath)
	events.Stdout, events.Stderr = out, os.Stderr
	output, err := events.StdinPipe()
	if err != nil {
		return err
	}
	if err := events.Start(); err != nil {
		return fmt.Errorf("start test2json: %w", err)
	}
	// The program's own limit is shorter: its report names the test that hung.
	limited, cancel := context.WithTimeout(ctx, opts.timeout+opts.timeout/10)
	defer cancel()
	runErr := at.blame(where.Run(limited, vm.Command{
		Args:   testArgs(opts, p),
		Env:    append(append(at.goEnv(), dmtest.Variable+"=1", "THINSNAP_CACHE="+cache), passedOn()...),
		Dir:    p.Dir,
		Stdout: output,
		Stderr: output,
	}))
	if runErr != nil {
		// Without a last line with FAIL, test2json would report a pass.
		fmt.Fprintf(output, "\n%v\nFAIL\n", runErr)
	}
	if err := output.Close(); err != nil {
		return err
	}
	if err := events.Wait(); err != nil {
		return fmt.Errorf("convert the tests' output: %w", err)
	}
	return runErr
}

// passedOn returns the variables that set the length of some tests.
func passedOn() (env []string) {
	for _, name := range []string{
		dmtest.ThoroughVariable, "THINSNAP_CYCLES", "THINSNAP_HISTORIES", "THINSNAP_KUBELET", "THINSNAP_SEED",
	} {
		env = append(env, name+"="+os.Getenv(name))
	}
	return env
}

func testArgs(opts options, p testPackage) []string {
	args := []string{p.binary, "-test.v=test2json", "-test.paniconexit0", "-test.timeout=" + opts.timeout.String(),
		fmt.Sprintf("-test.count=%d", opts.count)}
	if opts.short {
		args = append(args, "-test.short")
	}
	tests := "^(" + strings.Join(p.names, "|") + ")$"
	if _, subtests, ok := strings.Cut(opts.run, "/"); ok {
		tests += "/" + subtests
	}
	return append(args, "-test.run="+tests)
}
