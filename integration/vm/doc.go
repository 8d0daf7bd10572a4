// Package vm boots a stock Debian kernel in QEMU with the host's own file system as root, and runs programs in it.
//
// thinsnap's tests need root and a kernel with device-mapper, which they may crash. Nothing is installed on the host:
// integration/setup.sh unpacks the kernel's package into a cache directory (see [CacheDir]).
//
// Other runners do not fit. vimto has no disks that survive a kill, and needs 9p, virtio and overlay built into the
// kernel, where Debian has modules. hugelgupf/vmtest needs u-root; danobi/vmtest (Rust) and virtme-ng (Python) are not
// Go.
//
// # Basics
//
//	m, err := vm.Boot(ctx, vm.Config{Disks: []vm.Disk{{Path: "disk.img", Size: 10 << 30}}})
//	…
//	defer m.Kill()
//	err = m.Run(ctx, vm.Command{Args: []string{"dmsetup", "targets"}, Stdout: os.Stdout})
//
// The guest has every file of the host, read-only, under an overlay. Its writes are lost when it ends, except those to
// its disks and shares. Programs run as root with /run, /run/tmp (their TMPDIR), /dev/shm and
// /var/lib/{containerd,nerdctl,thinsnap} on tmpfs, cgroup v2, the loopback interface and no other network.
// THINSNAP_DISK0, THINSNAP_DISK1, … name the disks.
//
// [Machine.Kill] can end a guest at any instant, and its disks can go to the next guest. They have all data that a
// program has fsynced, and none that was only in the guest's memory.
//
// With [Config.Root] the guest is a separate system: it boots a Debian with systemd from a disk, which keeps its
// writes, and has the host's files below /run/host.
//
// # Caveats
//
//   - The guest may see an old or a mixed state of host files that change while it runs.
//   - The root's overlay has no direct I/O and cannot be the upper layer of another overlay.
//   - /tmp is the host's, under the overlay.
//   - Paths on the kernel's command line must not contain white space.
//
// # User-mode kernel
//
// With [Config.Accel] "uml" the guest's kernel is a process of the host (user-mode Linux), which integration/setup.sh
// uml unpacks. Programs run at the speed of the host's processor without KVM. But a system call takes some 10 µs and a
// page fault 20, the guest has one processor, and it measures CPU time only by its timer, every 10 ms.
//
// # Where a program runs
//
// [Prefer] decides between the guest and the host itself. On a host with root and dm-thin, [Direct] runs programs with
// the same interface.
package vm
