// Package dmpool creates temporary thin pools for tests. A test calls dmtest.RequireKernel and
// dmtest.NoLeaks first.
package dmpool

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/thin"
)

const (
	// BlockSectors is the pools' block size, 64 KiB in sectors of 512 bytes.
	BlockSectors = 128
)

// Pool is an active thin pool on two sparse files in the test's directory.
type Pool struct {
	*thin.Pool
	Control      *devmapper.Control
	Number       string // "MAJOR:MINOR" of the pool, for tables
	DataFile     string
	MetadataFile string
}

// Options describe a pool.
type Options struct {
	Dir                      string // for its files
	DataBytes, MetadataBytes int64  // sizes of the files
	ZeroBlocks               bool   // zero blocks before their first use
}

// New creates a pool with blocks of 64 KiB, which it does not zero, and the given sizes in bytes.
// When the test ends, the active volumes and the pool are removed. The loop devices then detach
// themselves.
func New(t testing.TB, dataBytes, metadataBytes int64) *Pool {
	t.Helper()
	return NewWith(t, Options{Dir: t.TempDir(), DataBytes: dataBytes, MetadataBytes: metadataBytes})
}

// NewWith is New with options.
func NewWith(t testing.TB, o Options) *Pool {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("make a thin pool: %v", err)
		}
	}
	control, err := devmapper.Open()
	must(err)
	t.Cleanup(func() {
		if err := control.Close(); err != nil {
			t.Error(err)
		}
	})
	name := fmt.Sprintf("dmpool-%d-%08x", os.Getpid(), rand.Uint32())
	p := &Pool{
		Pool:         thin.NewPool(control, name),
		Control:      control,
		DataFile:     filepath.Join(o.Dir, "data"),
		MetadataFile: filepath.Join(o.Dir, "metadata"),
	}
	data, err := attach(p.DataFile, o.DataBytes)
	must(err)
	defer func() { must(data.Close()) }()
	metadata, err := attach(p.MetadataFile, o.MetadataBytes)
	must(err)
	defer func() { must(metadata.Close()) }()

	target, err := thin.PoolTable{
		Metadata: metadata.Number(), Data: data.Number(), BlockSectors: BlockSectors, SkipBlockZeroing: !o.ZeroBlocks,
	}.Target(uint64(o.DataBytes) / devmapper.SectorBytes)
	must(err)
	d, err := control.Activate(name, "", []devmapper.Target{target}, false)
	must(err)
	p.Number = d.Number()
	t.Cleanup(func() {
		if err := p.destroy(); err != nil {
			t.Errorf("remove the thin pool: %v", err)
		}
	})
	return p
}

func attach(path string, size int64) (*blockdev.Loop, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return nil, err
	}
	return blockdev.LoopAttach(path, blockdev.LoopOptions{DirectIO: true})
}

// Activate activates a volume. The end of the test deactivates it.
func (p *Pool) Activate(name string, id thin.ID, bytes uint64, readOnly bool) (devmapper.Device, error) {
	return p.Control.Activate(name, "", []devmapper.Target{thin.Target(p.Number, id, bytes/devmapper.SectorBytes)},
		readOnly)
}

// destroy removes the active volumes and the pool.
func (p *Pool) destroy() error {
	devices, err := p.Control.List()
	if err != nil {
		return err
	}
	for _, d := range devices {
		mine, err := p.holds(d.Name)
		if err == nil && mine {
			err = p.deactivate(d.Name)
		}
		if err != nil && !errors.Is(err, devmapper.ErrNotFound) {
			return err
		}
	}
	return p.deactivate(p.Name())
}

// holds returns true if a device is a volume of the pool.
func (p *Pool) holds(name string) (bool, error) {
	_, targets, err := p.Control.Table(name)
	if err != nil || len(targets) != 1 || targets[0].Type != thin.Type {
		return false, err
	}
	pool, _, err := thin.ParseTarget(targets[0].Params)
	return pool == p.Number, err
}

// deactivate waits a little for a device that is still being closed. It resumes a suspended device,
// whose removal would block.
func (p *Pool) deactivate(name string) error {
	if d, err := p.Control.Info(name); err == nil && d.Suspended && d.Live {
		if _, err := p.Control.Resume(name); err != nil {
			return err
		}
	}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := p.Control.Deactivate(name)
		if !errors.Is(err, devmapper.ErrBusy) || time.Now().After(deadline) {
			return err
		}
	}
}
