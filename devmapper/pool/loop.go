package pool

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/thin"
)

// lowWaterBytes is the low water mark of a pool without LowWaterPercent.
const lowWaterBytes = 2 << 30

// deletedSuffix is the kernel's suffix to the path of a deleted file.
const deletedSuffix = " (deleted)"

// LoopSpec describes a pool on two files.
type LoopSpec struct {
	// ID identifies the pool; it is part of the UUID of each mapped device.
	ID string
	// Name is the name of the pool's mapped device.
	Name string
	// BlockBytes is the pool's block size: a multiple of 64 KiB, at most 1 GiB.
	BlockBytes uint64
	// DataFile and MetadataFile are absolute paths.
	DataFile, MetadataFile string
	// SectorBytes is the logical block size of the loop devices; 0 is 512. It must not change after
	// the pool was created, because file systems depend on it.
	SectorBytes uint64
	// LowWaterPercent is the share of free data, 1 to 100, at which the kernel raises an event;
	// 0 means 2 GiB.
	LowWaterPercent uint64
	// Sparse is true if an earlier version created a sparse data file: its holes are not allocated,
	// because that could fill the disk.
	Sparse bool
}

func (s LoopSpec) uuid() string { return uuidPrefix(s.ID) + "pool" }

func (s LoopSpec) lowWaterBlocks(total uint64) uint64 {
	if s.LowWaterPercent == 0 {
		return max(lowWaterBytes/s.BlockBytes, 1)
	}
	return max(percentOf(total, s.LowWaterPercent), 1)
}

// Open loads a loop pool into the kernel, or attaches to a loaded one after a restart of the
// daemon.
//
// complete is true if the pool was used before. If its metadata then has no superblock, Open
// returns ErrWrongPool: the kernel would format the metadata, and all volumes would be lost.
func (s LoopSpec) Open(ctx context.Context, control *devmapper.Control, complete bool) (*Pool, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p, err := s.OpenLoaded(control)
	if err == nil || !errors.Is(err, devmapper.ErrNotFound) {
		return p, err
	}
	if complete {
		if err := checkMetadataFile(s.MetadataFile); err != nil {
			return nil, fmt.Errorf("pool %s: %w", s.Name, err)
		}
	}
	dev, err := s.load(control)
	if err != nil {
		return nil, fmt.Errorf("load pool %s: %w", s.Name, err)
	}
	return s.attach(control, dev)
}

// OpenLoaded attaches to a loop pool in the kernel. It returns devmapper.ErrNotFound if there is
// none.
func (s LoopSpec) OpenLoaded(control *devmapper.Control) (*Pool, error) {
	dev, err := s.find(control)
	if err != nil {
		return nil, fmt.Errorf("pool %s: %w", s.Name, err)
	}
	return s.attach(control, dev)
}

// RequireName returns ErrNameTaken if the pool is not in the kernel, and a foreign device has its
// name. It changes nothing.
func (s LoopSpec) RequireName(control *devmapper.Control) error {
	if _, err := control.InfoByUUID(s.uuid()); !errors.Is(err, devmapper.ErrNotFound) {
		return err
	}
	if foreign, err := control.Info(s.Name); err == nil {
		return fmt.Errorf("device %s has UUID %q: %w; choose another pool.name, or remove that device",
			s.Name, foreign.UUID, ErrNameTaken)
	}
	return nil
}

func (s LoopSpec) find(control *devmapper.Control) (devmapper.Device, error) {
	if err := s.RequireName(control); err != nil {
		return devmapper.Device{}, err
	}
	dev, err := control.InfoByUUID(s.uuid())
	if err != nil || dev.Live {
		return dev, err
	}
	// Left by a crash between the creation of the device and the loading of its table.
	if _, err := control.Remove(devmapper.ByUUID(dev.UUID), devmapper.RemoveOptions{}); err != nil {
		return dev, err
	}
	return dev, fmt.Errorf("device %s had no table: %w", dev.Name, devmapper.ErrNotFound)
}

// attach returns the pool whose mapped device is dev. It checks that the pool is on the spec's
// files, and resumes a suspended pool.
func (s LoopSpec) attach(control *devmapper.Control, dev devmapper.Device) (*Pool, error) {
	if dev.Suspended {
		if _, err := control.Resume(devmapper.ByUUID(dev.UUID)); err != nil {
			return nil, fmt.Errorf("pool %s: %w", s.Name, err)
		}
	}
	b := &loopBackend{LoopSpec: s}
	p, err := newPool(control, dev, s.ID, s.Name, s.BlockBytes, b)
	if err != nil {
		return nil, fmt.Errorf("pool %s: %w", s.Name, err)
	}
	p.data.path, p.metadata.path = s.DataFile, s.MetadataFile
	live, err := p.live()
	if err == nil {
		err = errors.Join(checkFile(live.table.Data, s.DataFile), checkFile(live.table.Metadata, s.MetadataFile))
	}
	if err == nil {
		err = b.checkFileSystems(p)
	}
	if err != nil {
		return nil, fmt.Errorf("pool %s: %w", s.Name, err)
	}
	b.passdown.Store(!live.table.NoDiscardPassdown)
	return p, devmapper.EnsureNode(dev)
}

// checkFileSystems records whether the file system keeps allocated space for the pool's files.
func (b *loopBackend) checkFileSystems(p *Pool) error {
	for _, file := range []*backingFile{&p.data, &p.metadata} {
		f, err := os.OpenFile(file.path, os.O_RDWR|unix.O_NOFOLLOW, 0)
		if err != nil {
			return err
		}
		file.noSpaceReason = noSpaceReason(f)
		f.Close()
	}
	if b.Sparse && p.data.noSpaceReason == "" {
		p.data.noSpaceReason = "a version before 0.1.0 made its data file, and did not allocate it"
	}
	return nil
}

// checkFile checks that the loop device with the given number is on file.
func checkFile(number, file string) error {
	info, err := blockdev.LoopInfoByNumber(number)
	if err != nil {
		return err
	}
	want, err := os.Stat(file)
	if err != nil {
		return err
	}
	if info.SameFile(want) {
		return nil
	}
	if strings.HasSuffix(info.BackingFile, deletedSuffix) {
		return fmt.Errorf("loop device %s is on %s, not on %s: the root was moved to another file system, or its files were "+
			"replaced, while the pool was in the kernel: the pool's later writes are only in %s "+
			"(see \"A root moved with its pool in the kernel\" in docs/operations.md): %w",
			number, info.BackingFile, file, info.Path, ErrWrongPool)
	}
	return fmt.Errorf("loop device %s is on %s, not on %s: this root is a copy, and the pool of the original is in the "+
		"kernel: remove it from there with `thinsnap pool check` on the original's root: %w",
		number, info.BackingFile, file, ErrWrongPool)
}

func (s LoopSpec) loopOptions() blockdev.LoopOptions {
	return blockdev.LoopOptions{DirectIO: true, BlockSize: uint32(s.SectorBytes)}
}

// load attaches loop devices to the files, and creates the pool's mapped device on them.
func (s LoopSpec) load(control *devmapper.Control) (devmapper.Device, error) {
	metadata, err := blockdev.LoopAttach(s.MetadataFile, s.loopOptions())
	if err != nil {
		return devmapper.Device{}, err
	}
	// Once activated, the mapped device keeps the loop devices attached. If the activation fails,
	// Close detaches them.
	defer metadata.Close()
	// gofail: var afterAttachMetadata struct{}
	data, err := blockdev.LoopAttach(s.DataFile, s.loopOptions())
	if err != nil {
		return devmapper.Device{}, err
	}
	defer data.Close()
	// gofail: var afterAttachData struct{}
	bytes, err := blockdev.Size(data.Path)
	if err != nil {
		return devmapper.Device{}, err
	}
	table := thin.PoolTable{
		Metadata:       metadata.Number(),
		Data:           data.Number(),
		BlockSectors:   uint32(s.BlockBytes / devmapper.SectorBytes),
		LowWaterBlocks: s.lowWaterBlocks(bytes / s.BlockBytes),
	}
	// Whole blocks only: the kernel refuses a pool that ends within a block.
	target, err := table.Target(bytes / s.BlockBytes * s.BlockBytes / devmapper.SectorBytes)
	if err != nil {
		return devmapper.Device{}, err
	}
	dev, err := control.Activate(s.Name, s.uuid(), []devmapper.Target{target}, false)
	if err != nil {
		return devmapper.Device{}, err
	}
	// gofail: var afterPoolLoad struct{}
	return dev, nil
}

// checkMetadataFile looks for the superblock of a pool's metadata
// (drivers/md/dm-thin-metadata.c: THIN_SUPERBLOCK_MAGIC at byte 32).
func checkMetadataFile(path string) error {
	const magic, offset = 27022010, 32
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("metadata file %s is missing: %w", path, ErrWrongPool)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	var b [8]byte
	if _, err := f.ReadAt(b[:], offset); err != nil {
		return fmt.Errorf("read the superblock in %s: %w", path, err)
	}
	if binary.LittleEndian.Uint64(b[:]) != magic {
		return fmt.Errorf("%s has no pool metadata: %w", path, ErrWrongPool)
	}
	return nil
}

type loopBackend struct {
	LoopSpec
	// balancing is held while passdown changes or holes are allocated.
	balancing sync.Mutex
	// passdown is true if the live table passes discards down to the data file.
	passdown atomic.Bool
}

func (*loopBackend) deactivate(_ context.Context, p *Pool) error {
	return p.control.DeactivateUUID(p.Name(), p.uuid)
}

func (*loopBackend) setTransactionID(p *Pool, from, to uint64) error {
	return p.thin.SetTransactionID(from, to)
}

// largest leaves the data room for its holes and the reserve. For the metadata it counts all free
// space of the disk.
func (b *loopBackend) largest(ctx context.Context, p *Pool) (data, metadata uint64, err error) {
	status, err := p.Status(ctx)
	if err != nil {
		return 0, 0, err
	}
	disk, err := statDisk(b.DataFile)
	if err != nil {
		return 0, 0, err
	}
	room := disk.free - min(disk.free, status.Data.Holes+disk.reserve())
	if room < leastGrowth {
		room = 0
	}
	return status.Data.Total + room, status.Metadata.Total + status.Metadata.DiskFree, nil
}

func (b *loopBackend) keepAllocated(ctx context.Context, p *Pool) (watch bool, err error) {
	b.balancing.Lock()
	defer b.balancing.Unlock()
	watch = p.data.noSpaceReason == ""
	if p.metadata.noSpaceReason == "" {
		err = b.fillMetadata(ctx, p)
	}
	if !watch {
		return err != nil, err
	}
	return watch, errors.Join(err, b.balance(ctx, p))
}

// balance stops passing discards down when the disk runs short, and starts again when twice the
// reserve is free. It stops before it allocates the holes, because discards make new ones.
func (b *loopBackend) balance(ctx context.Context, p *Pool) error {
	// Only the pool's size matters here, and each change of the size refreshes the status.
	status, err := p.RecentStatus(ctx, balanceAge)
	if err != nil {
		return err
	}
	disk, err := statDisk(b.DataFile)
	if err != nil {
		return err
	}
	if p.reloaded.Swap(false) {
		live, err := p.live()
		if err != nil {
			p.reloaded.Store(true)
			return err
		}
		b.passdown.Store(!live.table.NoDiscardPassdown)
		p.data.allocated.Store(false)
	}
	on := b.passdown.Load()
	if on && disk.free < status.Data.Holes+disk.reserve() {
		on, err = false, b.passDown(ctx, p, false)
	}
	if on || err != nil {
		return err
	}
	if err := b.fillHoles(ctx, &p.data); err != nil {
		return err
	}
	// Allocating the holes used some of the free space.
	if disk, err = statDisk(b.DataFile); err != nil || disk.free < 2*disk.reserve() {
		return err
	}
	return b.passDown(ctx, p, true)
}

const balanceAge = 10 * time.Second

// fillMetadata allocates the holes of the metadata file, if that leaves the reserve free: earlier
// versions created a sparse file, which may be larger than a small disk.
func (b *loopBackend) fillMetadata(ctx context.Context, p *Pool) error {
	if p.metadata.allocated.Load() {
		return nil
	}
	bytes, err := blockdev.Size(p.metadata.path)
	if err != nil {
		return err
	}
	disk, err := statDisk(p.metadata.path)
	if err != nil {
		return err
	}
	holes := bytes - min(bytes, fileBytes(p.metadata.path))
	if needed := holes + disk.reserve(); disk.free < needed {
		p.metadata.missing.Store(holes)
		return fmt.Errorf("%d bytes of %s are not allocated: that needs %d bytes free on the disk, which has %d: %w",
			holes, p.metadata.path, needed, disk.free, unix.ENOSPC)
	}
	return b.fillHoles(ctx, &p.metadata)
}

// fillHoles allocates all holes of a file.
func (b *loopBackend) fillHoles(ctx context.Context, file *backingFile) error {
	if file.allocated.Load() {
		return nil
	}
	bytes, err := blockdev.Size(file.path)
	if err != nil {
		return err
	}
	if err := file.fill(ctx, bytes); err != nil {
		return fmt.Errorf("allocate disk space for %d bytes of %s: %w", file.missing.Load(), file.path, err)
	}
	return nil
}

// passDown loads the pool's table with or without no_discard_passdown. A pool that refuses changes
// keeps its table.
func (b *loopBackend) passDown(ctx context.Context, p *Pool, on bool) error {
	if status, err := p.Status(ctx); err != nil || !status.Changeable() {
		return err
	}
	p.loading.Lock()
	defer p.loading.Unlock()
	live, err := p.live()
	if err != nil {
		return err
	}
	table := live.table
	table.NoDiscardPassdown = !on
	target, err := table.Target(live.target.Length)
	if err != nil {
		return err
	}
	// gofail: var beforePassdown struct{}
	p.data.allocated.Store(false)
	if err := exchangeOrKeep(p, target, live); err != nil {
		return fmt.Errorf("load its table with discard passdown %t: %w", on, err)
	}
	b.passdown.Store(on)
	return nil
}
