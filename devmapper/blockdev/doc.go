// Package blockdev handles the block devices under and on top of a pool: loop
// devices over files (linux/loop.h), and a device's size, flush and discard
// (linux/fs.h). Sizes and offsets are in bytes.
package blockdev
