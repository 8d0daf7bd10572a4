package install

import (
	"fmt"
	"os"
	"runtime"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Enter executes this program, which must be static, in the mount namespace of process 1. It
// returns only on failure. The file becomes the program's standard input, because its path does not
// exist in that namespace. In a container without the machine's PIDs, Enter fails with
// errdefs.ErrFailedPrecondition.
func Enter(args []string, file *os.File) error {
	// The thread keeps the new namespace until the program replaces the process.
	runtime.LockOSThread()
	host, err := os.Open("/proc/1/ns/mnt")
	if err != nil {
		return fmt.Errorf("the mount namespace of process 1: %w: the container must be privileged", err)
	}
	defer host.Close()
	if err := requireOther(host); err != nil {
		return err
	}
	if err := unix.Dup3(int(file.Fd()), 0, 0); err != nil {
		return fmt.Errorf("make %s the standard input: %w", file.Name(), err)
	}
	// A thread must not share its root directory when it changes the namespace.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare the root directory: %w", err)
	}
	if err := unix.Setns(int(host.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter the mount namespace of process 1: %w: the container must be privileged", err)
	}
	return fmt.Errorf("execute %v on the machine: %w", args, syscall.Exec(self, args, os.Environ()))
}

// self is this program, even in a namespace in which its file has no name.
const self = "/proc/self/exe"

// requireOther fails if this process is in the namespace of process 1.
func requireOther(host *os.File) error {
	var theirs, ours unix.Stat_t
	if err := unix.Fstat(int(host.Fd()), &theirs); err != nil {
		return err
	}
	if err := unix.Stat("/proc/self/ns/mnt", &ours); err != nil {
		return err
	}
	if theirs.Ino == ours.Ino {
		return fmt.Errorf("process 1 is not the machine's: the pod needs hostPID: true: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}
