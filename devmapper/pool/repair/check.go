// Package repair checks and repairs the metadata of a pool that is not in the kernel, with the programs of
// thin-provisioning-tools. What it repairs is a file, whose content it exchanges as a whole: whenever it is interrupted,
// the file is either as it was or repaired, and what was there before is kept beside it.
package repair

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
)

// ErrNoDirectIO is returned for a file on a file system without direct I/O, such as an older tmpfs: the programs open
// what they read for that.
var ErrNoDirectIO = errors.New("its file system has no direct I/O, with which thin_check reads: copy it to a disk to check it there")

// Report is what a check has found.
type Report struct {
	// Path is what was checked.
	Path string
	// Complaints are the lines that thin_check has printed, none if it found nothing wrong.
	Complaints []string
	// NeedsCheck says that the kernel has marked the metadata: it changes nothing until the mark is taken off.
	NeedsCheck bool
	// Volumes is how many volumes there are, as far as they can be counted.
	Volumes int
	// Treeless are the volumes without a tree of mappings, in order ([thinmeta.Metadata.Whole]). They hold nothing, and
	// thin_check of version 0.9 has no complaint about them.
	Treeless []uint32
}

// Damaged tells whether thin_check has found something wrong.
func (r Report) Damaged() bool { return len(r.Complaints) > 0 }

// Good tells whether the metadata can be used as it is.
func (r Report) Good() bool { return !r.Damaged() && !r.NeedsCheck }

// Check has thin_check look at the metadata in a file or on a block device, which nobody must be using, and looks at it
// itself. It changes nothing. Damage is in the report; an error is that it could not look.
func Check(ctx context.Context, path string) (Report, error) {
	report, err := check(ctx, path)
	if err != nil {
		return report, fmt.Errorf("check the metadata in %s: %w", path, err)
	}
	return report, nil
}

func check(ctx context.Context, path string, options ...string) (Report, error) {
	r := Report{Path: path}
	dev, err := blockdev.OpenDirect(path)
	if errors.Is(err, unix.EINVAL) {
		return r, fmt.Errorf("%w: %w", ErrNoDirectIO, err)
	}
	if err != nil {
		return r, err
	}
	defer dev.Close()
	if r.Complaints, err = complaints(run(ctx, append(slices.Concat([]string{"thin_check"}, options), path)...)); err != nil {
		return r, err
	}
	metadata, err := thinmeta.Open(dev)
	if err != nil {
		if !r.Damaged() {
			r.Complaints = []string{err.Error()}
		}
		return r, ctx.Err()
	}
	r.NeedsCheck = metadata.Superblock().NeedsCheck
	whole, err := metadata.Whole(ctx, 0, ^uint32(0))
	if err != nil && !r.Damaged() && ctx.Err() == nil {
		r.Complaints = []string{err.Error()}
	}
	r.Volumes = len(whole)
	for id, isWhole := range whole {
		if !isWhole {
			r.Treeless = append(r.Treeless, id)
		}
	}
	slices.Sort(r.Treeless)
	return r, ctx.Err()
}

// size returns the size of a file in bytes.
func size(path string) (uint64, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("%s is no regular file: %w", path, os.ErrInvalid)
	}
	return uint64(info.Size()), nil
}
