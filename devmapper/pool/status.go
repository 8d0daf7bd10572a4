package pool

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/thin"
)

// Space is the fill of one of the pool's two devices, in bytes.
type Space struct {
	Used, Total uint64
	// Available is what can still be used: for a loop file no more than the
	// file system that it lies on has left.
	Available uint64
}

// Status is the state of a pool.
type Status struct {
	Data, Metadata Space
	BlockBytes     uint64
	thin.PoolStatus
}

// Status reads the state of the pool without making the kernel commit it.
func (p *Pool) Status(ctx context.Context) (Status, error) {
	return p.RecentStatus(ctx, 0)
}

// RecentStatus is Status as it was no longer than age ago, which may cost nothing.
func (p *Pool) RecentStatus(ctx context.Context, age time.Duration) (Status, error) {
	if err := ctx.Err(); err != nil {
		return Status{}, err
	}
	status, err := p.thin.RecentStatus(age)
	if err != nil {
		return Status{}, fmt.Errorf("status of pool %s: %w", p.name, err)
	}
	return Status{
		Data:       space(status.DataUsed, status.DataTotal, p.blockBytes, p.backing.DataFile),
		Metadata:   space(status.MetadataUsed, status.MetadataTotal, MetadataBlockBytes, p.backing.MetadataFile),
		BlockBytes: p.blockBytes,
		PoolStatus: status,
	}, nil
}

// Settle makes the pool commit, which it does by itself once a second: only then are
// the blocks that were given back counted as free.
func (p *Pool) Settle(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if _, err := p.thin.Status(false); err != nil {
		return fmt.Errorf("commit of pool %s: %w", p.name, err)
	}
	return nil
}

func space(used, total, blockBytes uint64, file string) Space {
	s := Space{Used: used * blockBytes, Total: total * blockBytes}
	s.Available = s.Total - s.Used
	if file == "" {
		return s
	}
	if left, err := diskLeft(file); err == nil {
		s.Available = min(s.Available, left)
	}
	return s
}

// diskLeft returns how many bytes the file system of a file has left.
func diskLeft(file string) (uint64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(file, &fs); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: file, Err: err}
	}
	return fs.Bavail * uint64(fs.Bsize), nil
}
