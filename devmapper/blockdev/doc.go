// Package blockdev handles the block devices below and above a pool: loop
// devices on files (linux/loop.h), and a device's size, flush and discard
// (linux/fs.h). Sizes and offsets are in bytes.
package blockdev
