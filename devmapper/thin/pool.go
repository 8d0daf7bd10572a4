package thin

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
)

var (
	// ErrExists is matched when a new volume's id is in use (EEXIST).
	ErrExists = errors.New("volume id is in use")
	// ErrNoDevice is matched when the pool has no volume with the id (ENODATA).
	ErrNoDevice = errors.New("no such volume in the pool")
	// ErrBusy is matched when a volume to delete is active, or the pool already has a metadata
	// snapshot (EBUSY).
	ErrBusy = errors.New("in use")
	// ErrPoolReadOnly is matched when the pool refuses changes of its metadata: a commit failed, or
	// the metadata device is full.
	ErrPoolReadOnly = errors.New("pool is read-only")
	// ErrPoolFailed is matched when the pool is in mode Fail or Error.
	ErrPoolFailed = errors.New("pool has failed")
	// ErrNotDone is matched if nothing has changed: the kernel refused a message, or an id was too
	// large. Package pool also returns it if the context had ended.
	ErrNotDone = errors.New("the pool was not changed")
)

// Pool sends messages to an active thin-pool device. It is safe for concurrent
// use; the kernel processes one message at a time.
//
// The kernel commits a change before it answers, but does not report a failed commit (pool_message
// in drivers/md/dm-thin.c). So the methods that change the pool read its status afterwards (with
// NoFlush). They fail with [ErrPoolReadOnly] or [ErrPoolFailed] if the pool has left the modes in
// which it commits. It is then unknown until the next activation of the pool whether the change was
// committed.
type Pool struct {
	control *devmapper.Control
	device  string // name, or devmapper.ByUUID
	name    string // for errors
	last    atomic.Pointer[PoolStatus]
}

// NewPool returns the pool whose mapped device has the given name.
func NewPool(c *devmapper.Control, name string) *Pool {
	return &Pool{control: c, device: name, name: name}
}

// NewPoolByUUID returns the pool whose mapped device has the given uuid. The device's name may
// change; errors use the given one.
func NewPoolByUUID(c *devmapper.Control, uuid, name string) *Pool {
	return &Pool{control: c, device: devmapper.ByUUID(uuid), name: name}
}

// Name returns the given name of the pool's device.
func (p *Pool) Name() string { return p.name }

// CreateThin creates an empty volume. It returns [ErrExists] if the id is in use.
func (p *Pool) CreateThin(id ID) error {
	return p.change(fmt.Sprintf("create_thin %d", id), id)
}

// CreateSnap creates a volume with the content of another. The caller must suspend an origin that
// is active and writable, or the content may be torn. It returns [ErrExists] if the id is in use,
// and [ErrNoDevice] if the origin does not exist.
func (p *Pool) CreateSnap(id, origin ID) error {
	return p.change(fmt.Sprintf("create_snap %d %d", id, origin), id, origin)
}

// Delete deletes a volume. It returns [ErrBusy] while the volume is active, and [ErrNoDevice] if it
// does not exist. It frees the volume's blocks in the pool, but does not discard them on the data
// device: for that, discard the volume first.
func (p *Pool) Delete(id ID) error {
	return p.change(fmt.Sprintf("delete %d", id), id)
}

// SetTransactionID changes the pool's transaction id, which only the pool's user interprets. It
// returns EINVAL if the current id is not oldID.
func (p *Pool) SetTransactionID(oldID, newID uint64) error {
	return p.change(fmt.Sprintf("set_transaction_id %d %d", oldID, newID))
}

// ReserveMetadataSnap takes a metadata snapshot, which can be read at PoolStatus.HeldRoot while the
// pool is active. It pins metadata blocks until it is released. It returns [ErrBusy] if there
// already is one.
func (p *Pool) ReserveMetadataSnap() error { return p.change("reserve_metadata_snap") }

// ReleaseMetadataSnap releases the metadata snapshot. It returns EINVAL if there is none.
func (p *Pool) ReleaseMetadataSnap() error { return p.change("release_metadata_snap") }

// Status reads the pool's status. Unless noFlush is set, the pool commits its
// metadata first, so the figures are exact.
func (p *Pool) Status(noFlush bool) (PoolStatus, error) {
	asked := time.Now()
	_, targets, err := p.control.Status(p.device, devmapper.StatusOptions{NoFlush: noFlush})
	if err != nil {
		return PoolStatus{}, fmt.Errorf("status of pool %s: %w", p.name, err)
	}
	if len(targets) != 1 || targets[0].Type != PoolType {
		return PoolStatus{}, fmt.Errorf("status of pool %s: the device is not a %s", p.name, PoolType)
	}
	s, err := ParsePoolStatus(targets[0].Params)
	if err != nil {
		return PoolStatus{}, fmt.Errorf("status of pool %s: %w", p.name, err)
	}
	s.Asked = asked
	p.last.Store(&s)
	return s, nil
}

// RecentStatus returns a status at most age old. It reads a new one only if needed, because that
// waits for a running commit. Each change refreshes the status.
func (p *Pool) RecentStatus(age time.Duration) (PoolStatus, error) {
	if last := p.last.Load(); last != nil && time.Since(last.Asked) < age {
		return *last, nil
	}
	return p.Status(true)
}

func (p *Pool) change(msg string, ids ...ID) error {
	for _, id := range ids {
		if id > MaxID {
			return fmt.Errorf("pool %s: %s: id %d is above %d: %w: %w", p.name, msg, id, MaxID, ErrNotDone, unix.EINVAL)
		}
	}
	_, err := p.control.Message(p.device, 0, msg)
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrNotDone, err)
	}
	if kind := kindOf(err); kind != nil {
		return fmt.Errorf("pool %s: %s: %w: %w", p.name, msg, kind, err)
	}
	// A read-only or failed pool answers EOPNOTSUPP, and one that is just failing EINVAL, so the
	// status decides.
	s, statusErr := p.Status(true)
	if statusErr != nil {
		return fmt.Errorf("pool %s: after %s: %w", p.name, msg, errors.Join(err, statusErr))
	}
	switch {
	case !s.Changeable() || errors.Is(err, unix.EOPNOTSUPP):
		return p.refusal(msg, s, err)
	case err != nil:
		return fmt.Errorf("pool %s: %s: %w", p.name, msg, err)
	}
	return nil
}

// refusal returns the error for a pool that does not commit changes.
func (p *Pool) refusal(msg string, s PoolStatus, cause error) error {
	kind := ErrPoolReadOnly
	if s.Mode == ModeFail || s.Mode == ModeError {
		kind = ErrPoolFailed
	}
	if cause == nil {
		return fmt.Errorf("pool %s: %s: %w (status %q)", p.name, msg, kind, s)
	}
	return fmt.Errorf("pool %s: %s: %w (status %q): %w", p.name, msg, kind, s, cause)
}

func kindOf(err error) error {
	switch {
	case errors.Is(err, unix.EEXIST):
		return ErrExists
	case errors.Is(err, unix.ENODATA):
		return ErrNoDevice
	case errors.Is(err, unix.EBUSY):
		return ErrBusy
	}
	return nil
}
