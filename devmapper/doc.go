// Package devmapper drives the kernel's device-mapper through its control
// device, with the ioctls of linux/dm-ioctl.h. It executes no program.
//
// A [Control] is an open control device; every operation is one method and,
// unless its comment says otherwise, one ioctl. Tables and status lines are
// strings here, as they are for the kernel: package thin gives those of
// thin-pool and thin their types.
//
// # Basics
//
// A device is made in three steps: [Control.Create] reserves the name,
// [Control.Load] puts a table in its inactive slot and [Control.Resume] makes
// that table live. [Control.Activate] does all three and makes the node
// /dev/mapper/NAME; [Control.Deactivate] undoes them.
//
// # Caveats
//
// Calls about one device must not overlap: the kernel keeps its own state
// consistent, but the order of two of them is then anyone's. Calls about
// different devices may run at the same time and do, with profit: most of the
// time of a load or a removal is spent waiting in the kernel.
//
// The udev cookie protocol of libdevmapper is not spoken. Uevents carry its
// flags, so that udev's rules make the same nodes and leave the contents of
// the devices alone, and nobody waits for udev: the nodes are made here.
package devmapper
