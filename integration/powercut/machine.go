// Package powercut kills a machine at random instants while it makes snapshots, boots it again on the same disk, and
// verifies all acknowledged operations.
package powercut

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/thinsnap/thinsnap/integration/powercut/model"
	"github.com/thinsnap/thinsnap/integration/vm"
)

// Options describe the machine and its work.
type Options struct {
	// Repository is the root of the source tree.
	Repository string
	// Dir is a directory for the machine's disks and for programs. It must have no disks of an earlier machine.
	Dir string
	// Filesystem is the file system of snapshots.
	Filesystem string
	// DirectLVM uses pools with disks of their own, instead of files on the root's disk.
	DirectLVM bool
	// Seed determines the operations, and the instants of the power cuts.
	Seed uint64
	// CPUs is the number of the machine's processors.
	CPUs int
	// Log gets a line about each step.
	Log func(format string, args ...any)
}

// diskSize is the size of every disk, in bytes. Its file is sparse.
const diskSize = 6 << 30

// machine is booted repeatedly.
type machine struct {
	Options
	args   []string // of the workload
	flags  []string // of the workload, for all disks but the first
	config vm.Config
}

// newMachine builds the guest's programs, without the race detector. The machine has one disk, and one more for each of
// the workload's flags.
func newMachine(ctx context.Context, o Options, flags ...string) (*machine, error) {
	build := func(name, pkg string) (string, error) {
		path := filepath.Join(o.Dir, name)
		cmd := exec.CommandContext(ctx, "go", "build", "-ldflags", "-s -w", "-o", path, pkg)
		cmd.Dir = o.Repository
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build %s: %w: %s", pkg, err, out)
		}
		return path, nil
	}
	thinsnap, err := build("thinsnap", "./cmd/thinsnap")
	if err != nil {
		return nil, err
	}
	workload, err := build("workload", "./integration/powercut/workload")
	if err != nil {
		return nil, err
	}
	agent, err := build("vmrun", "./integration/vm/vmrun")
	if err != nil {
		return nil, err
	}
	m := &machine{Options: o, flags: flags, args: []string{
		workload, "-thinsnap", thinsnap, "-filesystem", o.Filesystem, "-seed", strconv.FormatUint(o.Seed, 10),
	}}
	m.config = vm.Config{Shares: []string{o.Dir}, Agent: agent, CPUs: o.CPUs, MemoryMiB: 2048}
	for i := range 1 + len(flags) {
		path := filepath.Join(o.Dir, fmt.Sprintf("disk%d", i))
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		m.config.Disks = append(m.config.Disks, vm.Disk{Path: path, Size: diskSize})
	}
	return m, nil
}

// withContainerd adds the programs for images, which integration/setup.sh installs.
func (m *machine) withContainerd() error {
	cache, err := vm.CacheDir()
	if err != nil {
		return err
	}
	containerd, runc := filepath.Join(cache, "bin"), filepath.Join(cache, "debian/runc/usr/sbin")
	for _, program := range []string{filepath.Join(containerd, "containerd"), filepath.Join(runc, "runc")} {
		if _, err := os.Stat(program); err != nil {
			return fmt.Errorf("integration/setup.sh was not run: %w", err)
		}
	}
	m.args = append(m.args, "-containerd", containerd, "-runc", runc)
	return nil
}

// boot is a guest in which the workload runs.
type boot struct {
	guest   *vm.Machine
	process *vm.Process
	// events is closed when the guest or the workload has ended.
	events chan model.Event
	log    log
	err    error // of the workload or its events; valid once events is closed
}

// boot boots the guest and starts the workload with additional arguments.
func (m *machine) boot(ctx context.Context, args ...string) (*boot, error) {
	guest, err := vm.Boot(ctx, m.config)
	if err != nil {
		return nil, err
	}
	b, err := m.start(guest, args...)
	if err != nil {
		guest.Kill()
	}
	return b, err
}

// start starts the workload in a running guest.
func (m *machine) start(guest *vm.Machine, args ...string) (*boot, error) {
	b := &boot{guest: guest, events: make(chan model.Event, 1024)}
	all := append(append([]string{}, m.args...), "-disk", guest.Disks()[0])
	for i, flag := range m.flags {
		all = append(all, flag, guest.Disks()[i+1])
	}
	reader, writer := io.Pipe()
	var err error
	b.process, err = guest.Start(vm.Command{Args: append(all, args...), Env: guest.GoEnv(), Stdout: writer,
		Stderr: &b.log})
	if err != nil {
		return nil, err
	}
	waited := make(chan error, 1)
	go func() {
		waited <- b.process.Wait()
		_ = writer.Close() // never fails
	}()
	go b.follow(reader, waited)
	return b, nil
}

// follow reads the events until the workload ends or prints something else.
func (b *boot) follow(reader *io.PipeReader, waited <-chan error) {
	defer close(b.events)
	if b.err = model.Follow(reader, func(e model.Event) { b.events <- e }); b.err != nil {
		_ = reader.CloseWithError(b.err) // never fails
		return
	}
	b.err = <-waited
}

// failure describes a workload that ended by itself.
func (b *boot) failure() error {
	err := cmp.Or(b.err, errors.New("it reported success"))
	return fmt.Errorf("the workload ended by itself: %w\n%s\nthe console:\n%s", err, b.log.String(), b.guest.Console())
}

// log collects the workload's output besides events.
type log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}
