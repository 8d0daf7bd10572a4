// Package vm boots a stock Debian kernel in QEMU with the host's own file system as root, and runs
// programs in it.
//
// thinsnap's tests need a kernel with device-mapper, and root, and they crash both. Nothing is
// installed on the host: integration/setup.sh unpacks the kernel's package into a cache directory
// (see [CacheDir]).
//
// Other runners do not fit. vimto needs 9p, virtio and overlay built into the kernel, where Debian
// has modules, and has no disks that survive a kill; hugelgupf/vmtest needs u-root; danobi/vmtest
// (Rust) and virtme-ng (Python) are not Go.
//
// # Basics
//
//	m, err := vm.Boot(ctx, vm.Config{Disks: []vm.Disk{{Path: "disk.img", Size: 10 << 30}}})
//	…
//	defer m.Kill()
//	err = m.Run(ctx, vm.Command{Args: []string{"dmsetup", "targets"}, Stdout: os.Stdout})
//
// The guest sees every file of the host, read-only, under an overlay. Its writes are lost when it
// ends, except those to its disks and shares. Programs run as root with /run, /run/tmp (their
// TMPDIR), /dev/shm and /var/lib/{containerd,nerdctl,thinsnap} on tmpfs, cgroup v2, the loopback
// interface and no other network. THINSNAP_DISK0, THINSNAP_DISK1, … name the disks.
//
// A guest can be killed at any instant ([Machine.Kill]) and its disks given to the next one. They
// have all data that a program has fsynced, and none that was only in the guest's memory.
//
// With [Config.Root] the guest is a system of its own instead: it boots a Debian with systemd from a
// disk, which keeps what is written, and sees the host's files below /run/host.
//
// # Caveats
//
//   - Host files that change while a guest runs may be seen in their old state or a mixed one.
//   - The root's overlay has no direct I/O and cannot be the upper layer of another overlay.
//   - /tmp is the host's, under the overlay.
//   - Paths that are handed to the kernel's command line must not contain white space.
//
// # A kernel in user mode
//
// With [Config.Accel] "uml" the guest's kernel is a process of the host (user-mode Linux), which
// integration/setup.sh uml unpacks. Programs execute at the speed of the host's processor without
// KVM, but a system call takes some 10 µs, a page fault 20, and there is one processor. It counts
// CPU time by its timer alone, every 10 ms.
//
// # Where a program runs
//
// [Prefer] decides between the guest and the host itself. A host with root and dm-thin needs no
// guest: there [Direct] runs programs with the same interface.
package vm
