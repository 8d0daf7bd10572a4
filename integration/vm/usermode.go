package vm

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/thinsnap/thinsnap/integration/vm/internal/wire"
)

// userMode is the [Config.Accel] of user-mode Linux, a kernel that is a process of the host. Programs in the guest run
// on the host's processor without virtualization, but each system call is a switch of host processes.
const userMode = "uml"

//go:embed usermode.sh
var userModeScript []byte

// bootUserMode is Boot for a user-mode kernel.
func bootUserMode(ctx context.Context, config Config) (*Machine, error) {
	if config.Root != "" || config.Udev || config.CPUs != 1 {
		return nil, errors.New("a user-mode kernel has one processor, no udev and no system of its own")
	}
	k, err := findUserMode(config.Cache)
	if err != nil {
		return nil, err
	}
	script := filepath.Join(k.dir, fmt.Sprintf("init-%x.sh", sha256.Sum256(userModeScript)))
	if err := cached(script, func() ([]byte, error) { return userModeScript, nil }); err != nil {
		return nil, fmt.Errorf("write the guest's first program: %w", err)
	}
	return tryBoot(ctx, config, k, config.BootLimit, func(socket string) (*exec.Cmd, error) {
		return userModeCommand(config, k, script, socket)
	})
}

// findUserMode returns the kernel that integration/setup.sh uml unpacks.
func findUserMode(cache string) (kernel, error) {
	k := kernel{dir: filepath.Join(cache, userMode)}
	k.image, k.modules = filepath.Join(k.dir, "linux"), filepath.Join(k.dir, "lib", "modules")
	releases, err := filepath.Glob(filepath.Join(k.modules, "*", "modules.dep"))
	if err != nil {
		return kernel{}, err
	}
	if len(releases) != 1 {
		return kernel{}, fmt.Errorf("no user-mode kernel in %s: run integration/setup.sh uml first", k.dir)
	}
	k.release = filepath.Base(filepath.Dir(releases[0]))
	return k, nil
}

// userModeCommand returns the kernel's command. The agent's connection is a file that the kernel has as a serial line;
// close it once the command has started.
func userModeCommand(config Config, k kernel, script, socket string) (*exec.Cmd, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("connect the agent: %w", err)
	}
	defer conn.Close()
	file, err := conn.File()
	if err != nil {
		return nil, fmt.Errorf("connect the agent: %w", err)
	}
	const firstExtra = 3 // number of the first file in ExtraFiles
	args := []string{
		fmt.Sprintf("mem=%dM", config.MemoryMiB), "seccomp=on", "rootfstype=hostfs", "rootflags=/", "ro",
		"con=null", "con0=null,fd:1", fmt.Sprintf("ssl0=fd:%d", firstExtra), "loglevel=5", "panic=-1", "oops=panic",
		wire.PortParameter + "=/dev/ttyS0", config.KernelOptions,
	}
	for i, d := range config.Disks {
		args = append(args, fmt.Sprintf("ubd%d=%s", i, d.Path))
	}
	args = append(args, "init=/bin/sh", "--", script, config.Agent, k.dir, k.release)
	cmd := exec.Command(k.image, args...)
	cmd.ExtraFiles = []*os.File{file}
	// The guest's memory is a file in TMPDIR.
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		cmd.Env = append(os.Environ(), "TMPDIR=/dev/shm")
	}
	// The kernel's helper processes hold its output, and end shortly after it.
	cmd.WaitDelay = time.Second
	return cmd, nil
}

func userModeDisk(i int) string { return fmt.Sprintf("/dev/ubd%c", 'a'+i) }
