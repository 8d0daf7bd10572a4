package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/integration/powercut/model"
)

const (
	recorderName = "powercut-recorder"
	// readyMark marks the complete, empty file system.
	readyMark = "ready"
)

// recording has the operations during the recording of the disk's writes.
type recording struct {
	events []model.Event // acknowledged operations
}

// record works on a disk and records its writes on another device. Each acknowledged operation has a mark in the record
// with its number, from 1.
func record(ctx context.Context, control *devmapper.Control, o options, out *journal) (r *recording, err error) {
	msg, err := exec.CommandContext(ctx, "modprobe", "-a", "dm-log-writes", "dm-snapshot").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("load the modules: %w: %s", err, msg)
	}
	size, err := blockdev.Size(o.disk)
	if err != nil {
		return nil, err
	}
	device, err := control.Activate(recorderName, "", []devmapper.Target{
		{Length: size / 512, Type: "log-writes", Params: o.disk + " " + o.log},
	}, false)
	if err != nil {
		return nil, err
	}
	// The record is complete once the target is removed.
	defer func() { err = errors.Join(err, control.Deactivate(recorderName)) }()
	disk, err := blockdev.Path(device.Number())
	if err != nil {
		return nil, err
	}
	mark := func(text string) error {
		_, err := control.Message(recorderName, 0, "mark "+text)
		return err
	}
	if err := formatDisk(disk); err != nil {
		return nil, err
	}
	if err := mountDisk(disk, directory); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unmount(directory)) }()
	if err := syncDisk(disk); err != nil {
		return nil, err
	}
	if err := mark(readyMark); err != nil {
		return nil, err
	}
	server, err := startServer(o, recordedPool, "", filepath.Join(directory, "snapshots"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, removeDevices(control, recordedPool)) }()
	defer server.Kill()
	r = new(recording)
	out.acknowledged = func(e model.Event) error {
		r.events = append(r.events, e)
		return mark(strconv.Itoa(len(r.events)))
	}
	w := &work{sn: server.snapshotter, random: rand.New(rand.NewPCG(o.seed, 0)), out: out, model: model.New()}
	if err := w.run(ctx, o.operations); err != nil {
		return nil, err
	}
	out.acknowledged = func(model.Event) error { return nil }
	return r, server.stop()
}

// syncDisk flushes a mounted disk to stable storage.
func syncDisk(disk string) error {
	unix.Sync()
	return blockdev.Flush(disk)
}

// at returns the model after the given number of acknowledged operations, with the next one in doubt.
func (r *recording) at(acknowledged int) *model.Model {
	m := model.New()
	for i, e := range r.events[:min(acknowledged+1, len(r.events))] {
		e.Begin = i == acknowledged
		m.Apply(e)
	}
	return m
}

func unmount(dir string) error {
	if err := syscall.Unmount(dir, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}
