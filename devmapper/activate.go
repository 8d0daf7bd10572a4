package devmapper

import (
	"errors"
	"fmt"
)

// Activate creates a device with a table and its node, by Create, Load, Resume and [EnsureNode]:
// three ioctls. If it fails, it removes the device; if another process has the device open, the
// kernel removes it at the last close. If the device exists already, Activate returns [ErrExists]
// and changes nothing.
func (c *Control) Activate(name, uuid string, targets []Target, readOnly bool) (Device, error) {
	if _, err := c.Create(name, uuid); err != nil {
		return Device{}, err
	}
	// gofail: var afterCreateDevice struct{}
	d, err := c.start(name, targets, readOnly)
	if err != nil {
		return Device{}, errors.Join(err, c.undo(name))
	}
	return d, nil
}

func (c *Control) start(name string, targets []Target, readOnly bool) (Device, error) {
	if _, err := c.Load(name, targets, readOnly); err != nil {
		return Device{}, err
	}
	// gofail: var afterLoadDevice struct{}
	d, err := c.Resume(name)
	if err != nil {
		return Device{}, err
	}
	// gofail: var afterResumeDevice struct{}
	return d, EnsureNode(d)
}

func (c *Control) undo(name string) error {
	if _, err := c.Remove(name, RemoveOptions{Deferred: true}); err != nil {
		return fmt.Errorf("undo the activation: %w", err)
	}
	return RemoveNode(name)
}

// Deactivate removes a device and then its node, so a device in use ([ErrBusy]) keeps its node. It
// takes one ioctl. If there is no such device, it removes a stale node and returns [ErrNotFound].
func (c *Control) Deactivate(name string) error { return c.deactivate(name, name) }

// DeactivateUUID is [Control.Deactivate] for the device with the given uuid. Another device with
// the name remains, with its node.
func (c *Control) DeactivateUUID(name, uuid string) error { return c.deactivate(name, ByUUID(uuid)) }

func (c *Control) deactivate(name, device string) error {
	_, err := c.Remove(device, RemoveOptions{})
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	// gofail: var afterRemoveDevice struct{}
	return errors.Join(err, RemoveNode(name))
}
