// Package repair checks and repairs the metadata file of an inactive pool, with the programs of
// thin-provisioning-tools. A repair writes a new file and renames it, so an interruption leaves
// either the old or the repaired file. A backup beside it keeps the old content.
package repair

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
)

// ErrNoDirectIO is returned for a file on a file system without direct I/O, such as an older tmpfs.
// The programs need direct I/O.
var ErrNoDirectIO = errors.New("its file system has no direct I/O, which thin_check needs: copy the file to a disk " +
	"and check it there")

// Report is the result of a check.
type Report struct {
	// Path is the path of the metadata.
	Path string
	// Complaints are the lines of thin_check about errors; none if it found no damage.
	Complaints []string
	// NeedsCheck is true if the kernel has set the needs_check flag: it changes nothing until the
	// flag is cleared.
	NeedsCheck bool
	// Volumes is the number of readable volumes.
	Volumes int
	// Treeless are the volumes without a mapping tree, in order ([thinmeta.Metadata.Whole]). They
	// have no data, and thin_check 0.9 does not report them.
	Treeless []uint32
	// Lost is the number of data blocks that count as used although no volume maps them. Failed
	// writes during the mapping of new blocks leave them, and thin_check does not report them.
	Lost uint64
}

// Damaged reports whether thin_check found damage.
func (r Report) Damaged() bool { return len(r.Complaints) > 0 }

// Good reports whether the metadata needs no repair.
func (r Report) Good() bool { return !r.Damaged() && !r.NeedsCheck && r.Lost == 0 }

// problems returns the reasons for a repair, in words.
func (r Report) problems() string {
	problems := slices.Clone(r.Complaints)
	if r.NeedsCheck {
		problems = append(problems, "it is marked needs_check")
	}
	if r.Lost > 0 {
		problems = append(problems, fmt.Sprintf("%d lost blocks", r.Lost))
	}
	return strings.Join(problems, ", ")
}

// Check runs thin_check on the metadata in a file or on a block device that is not in use, and
// reads it. It changes nothing. Damage is in the report; an error means that the check failed.
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
	command := append(slices.Concat([]string{"thin_check"}, options), path)
	if r.Complaints, err = complaints(run(ctx, command...)); err != nil {
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
	hasTree, err := metadata.Whole(ctx, 0, ^uint32(0))
	if err != nil && !r.Damaged() && ctx.Err() == nil {
		r.Complaints = []string{err.Error()}
	}
	r.Volumes = len(hasTree)
	for id, has := range hasTree {
		if !has {
			r.Treeless = append(r.Treeless, id)
		}
	}
	slices.Sort(r.Treeless)
	if !r.Damaged() {
		if err := r.count(ctx, metadata); err != nil && ctx.Err() == nil {
			r.Complaints = []string{err.Error()}
		}
	}
	return r, ctx.Err()
}

// count compares the number of used blocks with the number that volumes map, unless there is a
// metadata snapshot, which keeps blocks of deleted volumes.
func (r *Report) count(ctx context.Context, metadata *thinmeta.Metadata) error {
	mapped, err := metadata.MappedBlocks(ctx)
	if err != nil {
		return err
	}
	sb := metadata.Superblock()
	if sb.HeldRoot == 0 {
		r.Lost = sb.DataUsed - min(mapped, sb.DataUsed)
	}
	return nil
}

func size(path string) (uint64, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("%s is not a regular file: %w", path, os.ErrInvalid)
	}
	return uint64(info.Size()), nil
}
