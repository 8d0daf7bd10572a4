package vm

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"github.com/thinsnap/thinsnap/integration/vm/internal/wire"
)

const qemuProgram = "qemu-system-x86_64"

// kernelOptions make a fault of the kernel end the guest. no_timer_check skips a test of the timer, in which an
// emulated machine on a busy host panics.
const kernelOptions = "console=ttyS0 loglevel=5 panic=-1 oops=panic mitigations=off apparmor=0 no_timer_check"

// norandmaps: QEMU keeps translated code by virtual address, so a program that is run again at the same address runs
// three times as fast. Features newer than Nehalem's (fast byte copies, larger register state, five-level page tables)
// slow an emulated processor down: without them a pool's tests take a third less time.
//
// When the first memory cgroup is made, the kernel rewrites an instruction of kmem_cache_alloc, unless kernel memory is
// not accounted. Emulated guests have hung there, with both of their processors.
//
// Debian's kernel clears all memory that it allocates, and checks the bounds of copies from and to programs: a tenth of
// an emulated processor's work.
const (
	emulatedCPU           = "Nehalem"
	emulatedKernelOptions = "norandmaps cgroup.memory=nokmem init_on_alloc=0 hardened_usercopy=off"
)

// baseArgs are the arguments of every guest. The machine has no default devices, and a panic or an oops ends it.
func baseArgs(accel string, k kernel, initrd, cmdline string) []string {
	machine := []string{"-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", emulatedCPU}
	options := kernelOptions + " " + emulatedKernelOptions
	if accel == "kvm" {
		machine = []string{"-accel", "kvm", "-cpu", "host"}
		options = kernelOptions
	}
	return append(machine,
		"-no-user-config", "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio",
		"-kernel", k.image, "-initrd", initrd,
		"-append", options+" "+cmdline,
	)
}

func qemuCommand(config Config, k kernel, ramdisk, socket string) *exec.Cmd {
	options := "thinsnap.agent=" + config.Agent + " " + config.KernelOptions
	if config.Root != "" {
		options += " thinsnap.modules=" + k.modules + " systemd.wants=guest-agent.service"
	}
	return exec.Command(qemuProgram, append(baseArgs(config.Accel, k, ramdisk, options), guestArgs(config, socket)...)...)
}

// guestArgs adds the guest's devices. They are identified by tag or serial number, not by their place on the bus.
func guestArgs(c Config, socket string) []string {
	args := []string{
		"-m", strconv.Itoa(c.MemoryMiB), "-smp", strconv.Itoa(c.CPUs),
		"-device", "virtio-rng-pci",
		"-device", "virtio-serial-pci",
		"-chardev", "socket,id=agent,path=" + escape(socket),
		"-device", "virtserialport,chardev=agent,name=" + wire.PortName,
		"-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap",
	}
	if extra := extraDir(c.Cache); extra != "" {
		args = append(args, "-virtfs",
			"local,path="+escape(extra)+",mount_tag=extra,security_model=none,readonly=on,multidevs=remap")
	}
	for i, s := range c.Shares {
		args = append(args, "-virtfs", fmt.Sprintf("local,path=%s,mount_tag=%s,security_model=none,multidevs=remap",
			escape(s), shareTag(i)))
	}
	for i, d := range c.Disks {
		args = append(args, diskArgs(d.Path, diskSerial(i))...)
	}
	if c.Root != "" {
		args = append(args, diskArgs(c.Root, rootSerial)...)
	}
	return args
}

func diskArgs(path, serial string) []string {
	return []string{
		"-drive", fmt.Sprintf("file=%s,format=raw,if=none,id=%s,discard=unmap,cache=writeback", escape(path), serial),
		"-device", fmt.Sprintf("virtio-blk-pci,drive=%s,serial=%s", serial, serial),
	}
}

// rootSerial is the serial number of the root disk, also used in system.sh.
const rootSerial = "root"

func shareTag(i int) string   { return fmt.Sprintf("share%d", i) }
func diskSerial(i int) string { return fmt.Sprintf("disk%d", i) }

// extraDir returns the directory of programs that the guest needs and the host may lack, laid out like a root
// directory, or "" if it does not exist.
func extraDir(cache string) string {
	dir := filepath.Join(cache, "debian", "guest")
	if matches, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(matches) == 0 {
		return ""
	}
	return dir
}

// escape escapes a value for QEMU's comma-separated options.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// startTied starts a guest that dies with this process, and closes done when the guest has ended. The kernel ties a
// child to the thread that made it, so one thread stays for the child's life.
func startTied(cmd *exec.Cmd, done chan<- struct{}) error {
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		_ = cmd.Wait() // the status does not describe the guest
		close(done)
	}()
	return <-started
}
