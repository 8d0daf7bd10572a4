// Package guest runs inside the guest of package vm: as process 1, and as the agent that starts commands for the host.
package guest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

// InitFlag is the argument with which the kernel starts the program as process 1.
const InitFlag = "-guest-init"

// AgentFlag is the argument with which Init starts its own program as the agent.
const AgentFlag = "-guest-agent"

// Init is the guest's process 1: it mounts the file systems, starts the agent, collects orphans and powers the machine
// off when the agent ends. It does not return.
func Init() {
	if err := runInit(); err != nil {
		fmt.Fprintln(os.Stderr, "thinsnap guest:", err)
	}
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Fprintln(os.Stderr, "thinsnap guest: power off:", err)
	}
	time.Sleep(time.Hour)
}

func runInit() error {
	if err := mountAll(); err != nil {
		return err
	}
	if err := setLimits(); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte("thinsnap-guest")); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	// The agent is a separate process because process 1 collects every orphan, and would also collect the exit statuses
	// of the agent's children.
	agent := exec.Command("/proc/self/exe", AgentFlag)
	agent.Stdout, agent.Stderr = os.Stdout, os.Stderr
	if err := agent.Start(); err != nil {
		return fmt.Errorf("start the agent: %w", err)
	}
	return reap(agent.Process.Pid)
}

// reap collects children until the one with the given pid has ended.
func reap(pid int) error {
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for children: %w", err)
		case got == pid && (status.Exited() || status.Signaled()):
			return nil
		}
	}
}

// setLimits raises the number of open files, which the kernel sets to 1024 for process 1 (at most 4096).
func setLimits() error {
	limit := unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("raise the open file limit: %w", err)
	}
	return nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	defer unix.Close(fd)
	ifreq, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	ifreq.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifreq); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}
