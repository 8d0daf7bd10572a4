package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/thin"
)

// Space is the usage of one of the pool's two devices, in bytes.
type Space struct {
	Used, Total uint64
	// Available is the space for new blocks: Total minus Used. For a file it is at most the file's
	// allocated, unused space plus the free space of its disk.
	Available uint64
	// Holes is the part of Total that has no space on the disk below the file: a write there fails
	// if the disk is full. DiskFree is the free space of that disk. Both are 0 for a block device.
	Holes, DiskFree uint64
	// Disk is the st_dev (stat(3type)) of the file, or 0.
	Disk uint64
}

// Status is the state of a pool.
type Status struct {
	Data, Metadata Space
	BlockBytes     uint64
	// NoSpaceTimeout is how long the kernel holds back writes to a full pool before it fails them;
	// 0 means forever.
	NoSpaceTimeout time.Duration
	thin.PoolStatus
}

// Overpromised returns the bytes of the pool that are neither allocated on the disks below nor free
// there.
func (s Status) Overpromised() uint64 {
	data, metadata := s.Data, s.Metadata
	if data.Disk == metadata.Disk {
		data.Holes, metadata.Holes = data.Holes+metadata.Holes, 0
	}
	return data.Holes - min(data.Holes, data.DiskFree) + metadata.Holes - min(metadata.Holes, metadata.DiskFree)
}

// Status reads the pool's state without a commit.
func (p *Pool) Status(ctx context.Context) (Status, error) {
	return p.RecentStatus(ctx, 0)
}

// RecentStatus returns a status at most age old. It takes no ioctl if there is such a status. The
// free space of the disks below the pool's files is always current.
func (p *Pool) RecentStatus(ctx context.Context, age time.Duration) (Status, error) {
	return p.status(ctx, age, 0)
}

// CachedStatus is RecentStatus with free disk space at most age old, too. It takes no system call
// if there is such a status.
func (p *Pool) CachedStatus(ctx context.Context, age time.Duration) (Status, error) {
	return p.status(ctx, age, age)
}

// disks has the parts of a status that need no ioctl: the disks below the pool's files, and a
// kernel parameter.
type disks struct {
	at             time.Time
	data, metadata *disk
	// noSpaceTimeout was read at timeoutAt. It hardly ever changes.
	noSpaceTimeout time.Duration
	timeoutAt      time.Time
}

// timeoutAge is the greatest age of NoSpaceTimeout.
const timeoutAge = time.Second

// recentDisks returns disks at most age old.
func (p *Pool) recentDisks(age time.Duration) *disks {
	last := p.disks.Load()
	if last != nil && time.Since(last.at) < age {
		return last
	}
	now := &disks{at: time.Now()}
	now.data, now.metadata = p.data.disk(), p.metadata.disk()
	if last != nil && time.Since(last.timeoutAt) < timeoutAge {
		now.noSpaceTimeout, now.timeoutAt = last.noSpaceTimeout, last.timeoutAt
	} else {
		now.noSpaceTimeout, now.timeoutAt = thin.NoSpaceTimeout(), time.Now()
	}
	p.disks.Store(now)
	return now
}

func (p *Pool) status(ctx context.Context, age, disksAge time.Duration) (Status, error) {
	if err := ctx.Err(); err != nil {
		return Status{}, err
	}
	status, err := p.thin.RecentStatus(age)
	if err != nil {
		return Status{}, fmt.Errorf("status of pool %s: %w", p.name, p.explainGone(err))
	}
	below := p.recentDisks(disksAge)
	return Status{
		Data:           p.data.space(status.DataUsed, status.DataTotal, p.blockBytes, below.data),
		Metadata:       p.metadata.space(status.MetadataUsed, status.MetadataTotal, MetadataBlockBytes, below.metadata),
		BlockBytes:     p.blockBytes,
		NoSpaceTimeout: below.noSpaceTimeout,
		PoolStatus:     status,
	}, nil
}

// Commit makes the pool commit its metadata. The kernel does so each second while the pool is
// written to. Freed blocks are available only after a commit.
func (p *Pool) Commit(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if _, err := p.thin.Status(false); err != nil {
		return fmt.Errorf("commit of pool %s: %w", p.name, p.explainGone(err))
	}
	return nil
}

type liveTable struct {
	device devmapper.Device
	target devmapper.Target
	table  thin.PoolTable
}

func (p *Pool) live() (liveTable, error) {
	dev, targets, err := p.control.Table(p.device)
	if err != nil {
		return liveTable{}, p.explainGone(err)
	}
	if len(targets) != 1 || targets[0].Type != thin.PoolType {
		return liveTable{}, fmt.Errorf("device %s is not a thin pool: %w", dev.Name, ErrWrongPool)
	}
	table, err := thin.ParsePoolTable(targets[0].Params)
	if err != nil {
		return liveTable{}, err
	}
	if bytes := uint64(table.BlockSectors) * devmapper.SectorBytes; p.blockBytes != 0 && p.blockBytes != bytes {
		return liveTable{}, fmt.Errorf("it has blocks of %d bytes, not of %d: %w", bytes, p.blockBytes, ErrWrongPool)
	}
	return liveTable{dev, targets[0], table}, nil
}

// Backing describes the devices below a pool.
type Backing struct {
	// DataFile and MetadataFile are the files below the pool's devices, if these are loop devices.
	DataFile, MetadataFile string
	// DataDevice and MetadataDevice are the pool's devices, as "MAJOR:MINOR".
	DataDevice, MetadataDevice string
	// DataPath and MetadataPath are their nodes.
	DataPath, MetadataPath string
	// DataDisks and MetadataDisks are the nodes of the disks below those devices.
	DataDisks, MetadataDisks []string
}

// Backing reads the devices below the pool.
func (p *Pool) Backing() (Backing, error) {
	l, err := p.live()
	if err != nil {
		return Backing{}, err
	}
	b := Backing{DataDevice: l.table.Data, MetadataDevice: l.table.Metadata}
	if b.DataPath, b.DataFile, b.DataDisks, err = below(l.table.Data, p.data.path); err != nil {
		return Backing{}, err
	}
	b.MetadataPath, b.MetadataFile, b.MetadataDisks, err = below(l.table.Metadata, p.metadata.path)
	return b, err
}

// below returns the node of a block device, and the file or the disks below it. All are empty if
// the disk was removed: the pool has failed then, and must still be reported. known is returned as
// the file if it is one of its paths.
func below(number, known string) (path, file string, disks []string, err error) {
	if path, err = blockdev.Path(number); errors.Is(err, os.ErrNotExist) {
		return "", "", nil, nil
	} else if err != nil {
		return "", "", nil, err
	}
	// Only a loop device is opened: LVM must not find its own devices open.
	if _, err := os.Stat(filepath.Join("/sys/dev/block", number, "loop")); err == nil {
		file = fileOf(path, known)
	}
	slaves, err := os.ReadDir(filepath.Join("/sys/dev/block", number, "slaves"))
	if errors.Is(err, os.ErrNotExist) {
		return path, file, nil, nil
	}
	for _, s := range slaves {
		// sysfs writes "!" for "/" in names such as cciss/c0d0.
		disks = append(disks, filepath.Join("/dev", strings.ReplaceAll(s.Name(), "!", "/")))
	}
	return path, file, disks, err
}

// fileOf returns the file of a loop device: known if that is one of its paths, or the kernel's
// path, or "".
func fileOf(loopPath, known string) string {
	loop, err := blockdev.LoopInfo(loopPath)
	if err != nil {
		return ""
	}
	for _, file := range []string{known, loop.BackingFile} {
		if info, err := os.Stat(file); err == nil && loop.SameFile(info) {
			return file
		}
	}
	return ""
}

func (p *Pool) metadataPath() (string, error) {
	l, err := p.live()
	if err != nil {
		return "", err
	}
	return blockdev.Path(l.table.Metadata)
}
