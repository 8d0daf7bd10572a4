package daemon

import (
	"context"
	"errors"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/internal/adopt"
	"github.com/thinsnap/thinsnap/internal/autoextend"
	"github.com/thinsnap/thinsnap/internal/clients"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/differ"
	"github.com/thinsnap/thinsnap/internal/kernel"
	"github.com/thinsnap/thinsnap/internal/provision"
	"github.com/thinsnap/thinsnap/internal/rootdir"
	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/snapshotter"
)

// controlWait limits how long a close waits for calls in the kernel.
const controlWait = time.Second

// Daemon is an open root directory. Only one process can open it at a time.
type Daemon struct {
	config       config.Config
	control      *devmapper.Control
	store        *metadata.Store
	pool         *pool.Pool
	stored       provision.Stored // the same pool, as recorded in the store
	snapshotter  *snapshotter.Snapshotter
	differ       *differ.Differ
	clients      map[string]*clients.Registry // the configured clients' registries, by name
	callers      clients.Connections
	extender     *autoextend.Extender // nil in a command on a stopped daemon's root
	stopExtender func() error
	// checking holds one token: one check at a time.
	checking chan struct{}
	// trimming holds one token: one snapshot at a time.
	trimming  chan struct{}
	reopening reopening
	spaces    spaces
	owners    ownerCache
}

// Open opens a root's pool and a snapshotter on it. If the root has no pool, Open makes it.
//
// It fails with metadata.ErrLocked while another process has the root open, and with
// errdefs.ErrFailedPrecondition during an unfinished adoption. After an error or a panic nothing is
// open, and Open can be called again.
func Open(ctx context.Context, c config.Config) (_ *Daemon, err error) {
	if err := kernel.Require(); err != nil {
		return nil, finalError{err}
	}
	d, err := openRoot(c)
	if err != nil {
		return nil, err
	}
	opened := false
	defer func() { // also after a panic
		if !opened {
			err = errors.Join(err, d.closeRoot())
		}
	}()
	if err := d.open(ctx); err != nil {
		return nil, err
	}
	opened = true
	return d, nil
}

// finalError is an error that persists until the operator mends its cause and restarts the daemon.
type finalError struct{ error }

// Unwrap returns the error.
func (e finalError) Unwrap() error { return e.error }

// IsFinal reports whether Open would fail again with this error: the kernel is too old, other users
// can write to the root, an adoption is unfinished, or a newer thinsnap wrote the store.
func IsFinal(err error) bool {
	var final finalError
	return errors.As(err, &final) || errors.Is(err, metadata.ErrNewer)
}

// openRoot opens the kernel's control node and the store of a root, which locks the root.
func openRoot(c config.Config) (*Daemon, error) {
	if err := rootdir.Prepare(c.Root); err != nil {
		if errdefs.IsFailedPrecondition(err) {
			err = finalError{err}
		}
		return nil, err
	}
	store, err := openStore(c)
	if err != nil {
		return nil, err
	}
	control, err := devmapper.Open()
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	return &Daemon{
		config: c, control: control, store: store, clients: newClients(c, store),
		checking: make(chan struct{}, 1), trimming: make(chan struct{}, 1),
	}, nil
}

// openStore opens the store of a root, which locks the root. It fails during an adoption.
func openStore(c config.Config) (*metadata.Store, error) {
	leave, err := adopt.Enter(c.Root)
	if err != nil {
		if errdefs.IsFailedPrecondition(err) {
			err = finalError{err}
		}
		return nil, err
	}
	defer leave()
	return metadata.Open(rootdir.Store(c.Root), metadata.Options{})
}

func (d *Daemon) open(ctx context.Context) error {
	if err := d.openPool(ctx); err != nil {
		return err
	}
	d.extender = autoextend.New(d.config.Pool.Name, d.pool, d.stored.Growth(d.config))
	c := snapshotter.Config{
		Filesystem:     d.config.Filesystem.Type,
		BaseBytes:      uint64(d.config.Filesystem.BaseSize),
		MaxBytes:       uint64(d.config.Filesystem.MaxSize),
		MkfsOptions:    d.config.Filesystem.MkfsOptions,
		MountOptions:   d.config.Filesystem.MountOptions,
		MountDir:       rootdir.Mounts(d.config.Root),
		MinFreePercent: uint64(d.config.Pool.MinFreeSpace),
		Spares:         int(d.config.Pool.SparesMax),
		Discard:        d.config.Pool.DiscardOnRemove,
		Reopen:         d.reopenPool,
		MakeRoom:       d.extender.MakeRoom,
	}
	events, err := d.control.Events()
	if err != nil {
		return err
	}
	host := filesystem.Host{MountOptions: c.MountOptions}
	if d.snapshotter, err = snapshotter.New(ctx, c, d.store, d.pool, host); err != nil {
		return errors.Join(err, events.Close())
	}
	d.differ = differ.New(d.snapshotter, d.pool, d.connectCaller, differ.Options{
		MountOptions: c.MountOptions, Verify: d.config.Diff.Verify,
	})
	d.releaseMetadata(ctx)
	d.startExtender(ctx, events)
	return nil
}

// startExtender runs the extender until stopExtender is called.
func (d *Daemon) startExtender(ctx context.Context, events *devmapper.Events) {
	extending, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := errors.Join(d.extender.Run(extending, events), events.Close()); err != nil {
			log.G(ctx).WithError(err).Error("autoextend has stopped: the pool no longer grows by itself; restart thinsnap")
		}
	}()
	// A program that outlives the service is killed by systemd, so wait for it.
	wait := controlWait + d.stored.ExtendGrace()
	d.stopExtender = func() error {
		cancel()
		return closeWithin(wait, func() error { <-ended; return nil })
	}
}

// releaseMetadata releases the metadata snapshot that a crash during a check left behind: it keeps
// blocks of metadata from being reused. No other thinsnap reads it, because the root is locked. In
// a foreign pool it may be the owner's, and stays.
func (d *Daemon) releaseMetadata(ctx context.Context) {
	status, err := d.pool.Status(ctx)
	if err == nil && status.HeldRoot != 0 && !d.stored.Foreign() {
		err = d.pool.ReleaseMetadata(ctx)
	}
	if err != nil {
		log.G(ctx).WithError(err).Warn("a metadata snapshot left by a crash could not be released")
	}
}

func (d *Daemon) openPool(ctx context.Context) (err error) {
	if d.pool, err = provision.Open(ctx, d.store, d.control, d.config); err != nil {
		return err
	}
	d.stored, err = provision.Read(ctx, d.store)
	return err
}

// Snapshotter returns the snapshotter. Close closes it.
func (d *Daemon) Snapshotter() *snapshotter.Snapshotter { return d.snapshotter }

// Close closes the root. The pool and all active volumes stay in the kernel. Calls that hang in the
// kernel end with the process.
func (d *Daemon) Close() error {
	for _, client := range d.clients {
		client.Close()
	}
	return errors.Join(d.stopExtender(), d.snapshotter.Close(), d.callers.Close(),
		closeWithin(controlWait, d.control.Close))
}

// closeRoot undoes openRoot.
func (d *Daemon) closeRoot() error {
	return errors.Join(d.store.Close(), closeWithin(controlWait, d.control.Close))
}

// closeWithin calls closing, which waits for calls in the kernel. After the limit it returns nil
// and leaves closing running.
func closeWithin(limit time.Duration, closing func() error) error {
	closed := make(chan error, 1)
	go func() { closed <- closing() }()
	select {
	case err := <-closed:
		return err
	case <-time.After(limit):
		log.L.Warn("a call does not return from the kernel, closing without it: the pool may be full, or a disk may " +
			"hang; see dmesg")
		return nil
	}
}
