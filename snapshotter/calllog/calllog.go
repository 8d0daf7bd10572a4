// Package calllog records the device that a client's call works on, for the call's log line and its error.
package calllog

import (
	"context"
	"sync/atomic"
)

type key struct{}

// Call is a client's call. Its methods may be called concurrently with [SetDevice].
type Call struct{ device atomic.Pointer[string] }

// With returns the call of ctx, and adds a new call to a context without one.
func With(ctx context.Context) (context.Context, *Call) {
	if call, ok := ctx.Value(key{}).(*Call); ok {
		return ctx, call
	}
	call := new(Call)
	return context.WithValue(ctx, key{}, call), call
}

// SetDevice sets the path of the device that the call of ctx works on. It does nothing outside a call.
func SetDevice(ctx context.Context, path string) {
	if call, ok := ctx.Value(key{}).(*Call); ok {
		call.device.Store(&path)
	}
}

// Device returns the path of the last device, or "".
func (c *Call) Device() string {
	if path := c.device.Load(); path != nil {
		return *path
	}
	return ""
}
