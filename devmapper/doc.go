// Package devmapper drives the kernel's device-mapper through its control
// device, with the ioctls of linux/dm-ioctl.h. It executes no program.
//
// A [Control] is an open control device; every operation is one method and, unless its comment says
// otherwise, one ioctl. Tables and status lines are strings, as in the kernel; package thin parses
// those of thin-pool and thin.
//
// # Basics
//
// A device is created in three steps: [Control.Create] reserves the name, [Control.Load] puts a
// table into its inactive slot and [Control.Resume] makes that table live. [Control.Activate] does
// all three and creates the node /dev/mapper/NAME; [Control.Deactivate] undoes them.
//
// # Caveats
//
// Calls about one device must not overlap: the kernel stays consistent, but their order is
// undefined. Calls about different devices may overlap, and should: a load or a removal spends most
// of its time waiting in the kernel.
//
// The package does not implement libdevmapper's udev cookie protocol. It creates the nodes itself
// and does not wait for udev. Uevents carry the protocol's flags, so that udev's rules neither
// manage the links in /dev/mapper nor scan the devices.
package devmapper
