package fakepool

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/filesystem"
)

// Make implements snapshotter.Filesystem.
func (p *Pool) Make(ctx context.Context, dev, typ string, _ []string) error {
	unlock, err := p.enter(ctx, "Make", 0)
	if err != nil {
		return err
	}
	defer unlock()
	id, d := p.byPath(dev)
	if d == nil {
		return devmapper.ErrNotFound
	}
	p.volumes[id].written, p.volumes[id].tree = p.time, p.newTree()
	p.volumes[id].uuid = fmt.Sprintf("%s-%x", typ, rand.Uint64())
	return nil
}

// Identify implements snapshotter.Filesystem.
func (p *Pool) Identify(dev string) (filesystem.Superblock, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	id, d := p.byPath(dev)
	if d == nil {
		return filesystem.Superblock{}, devmapper.ErrNotFound
	}
	v := p.volumes[id]
	if v.uuid == "" {
		return filesystem.Superblock{}, filesystem.ErrNotRecognised
	}
	typ, _, _ := strings.Cut(v.uuid, "-")
	return filesystem.Superblock{Type: typ, UUID: v.uuid, Bytes: v.bytes, BlockBytes: 4096}, nil
}

// Grow implements snapshotter.Filesystem.
func (p *Pool) Grow(dev, _ string, _ uint64) error { return p.change("Grow", dev) }

// Recover implements snapshotter.Filesystem.
func (p *Pool) Recover(dev, _ string) error { return p.change("Recover", dev) }

// change writes to the volume behind a device without a change of its content.
func (p *Pool) change(method, dev string) error {
	unlock, err := p.enter(context.Background(), method, 0)
	if err != nil {
		return err
	}
	defer unlock()
	id, d := p.byPath(dev)
	if d == nil {
		return devmapper.ErrNotFound
	}
	p.volumes[id].written, p.volumes[id].tree = p.time, p.newTree()
	return nil
}

// Verify implements snapshotter.Filesystem. It panics for a writable volume, on which the kernel
// would replay the log.
func (p *Pool) Verify(dev, _ string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if id, d := p.byPath(dev); d == nil || !d.readOnly && !d.refusesWrites {
		panic(fmt.Sprintf("volume %d is verified while it is writable", id))
	}
	return nil
}

// Sync implements snapshotter.Filesystem.
func (p *Pool) Sync(string, string) error { return nil }

// Inodes implements snapshotter.Filesystem. It returns one for each byte of content.
func (p *Pool) Inodes(dev, _ string) (uint64, error) {
	content, err := p.Read(dev)
	return uint64(len(content)), err
}

// Mounted implements snapshotter.Filesystem. Every opener is a mount.
func (p *Pool) Mounted(dev, _ string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, d := p.byPath(dev)
	return d != nil && d.openers > 0
}

// Trim implements snapshotter.Filesystem. Every fourth byte is free. It panics for a suspended
// volume, for which a real trim would block.
func (p *Pool) Trim(dev, _ string, start, length uint64) (uint64, error) {
	unlock, err := p.enter(context.Background(), "Trim", 0)
	if err != nil {
		return 0, err
	}
	defer unlock()
	id, d := p.byPath(dev)
	switch {
	case d == nil:
		return 0, devmapper.ErrNotFound
	case d.suspended:
		panic(fmt.Sprintf("volume %d is trimmed while it is suspended", id))
	case d.readOnly:
		return 0, unix.EBUSY
	case start >= p.volumes[id].bytes:
		return 0, unix.EINVAL
	}
	return length / 4, nil
}

// Mount implements snapshotter.Filesystem.
func (p *Pool) Mount(dev, _, dir string, _ []string) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	id, d := p.byPath(dev)
	if d == nil {
		return "", devmapper.ErrNotFound
	}
	if _, shared := p.shares[dir]; !shared {
		p.shares[dir] = id
		d.openers++
	}
	return filesystem.MountPath(dir), nil
}

// Unmount implements snapshotter.Filesystem.
func (p *Pool) Unmount(dir string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if d := p.active[p.shares[dir]]; d != nil {
		d.openers--
	}
	delete(p.shares, dir)
	return nil
}

// Bytes returns the size of the active volume behind a device.
func (p *Pool) Bytes(dev string) uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	id, d := p.byPath(dev)
	if d == nil {
		return 0
	}
	return p.volumes[id].bytes
}
