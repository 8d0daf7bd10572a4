package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/integration/powercut/logwrites"
	"github.com/thinsnap/thinsnap/integration/powercut/model"
)

const (
	recordedPool = "powercut"
	replayName   = "replay"
	// changesFile has the writes after a point, so that the replay can continue with the next point. It is in memory.
	changesFile = "/run/tmp/changes"
	changesSize = 1 << 30
)

// recordAndReplay records all writes to a disk. Then it verifies all acknowledged operations at some points at which
// the power could have failed.
func recordAndReplay(ctx context.Context, o options, out *journal) error {
	control, err := devmapper.Open()
	if err != nil {
		return err
	}
	defer control.Close()
	r, err := record(ctx, control, o, out)
	if err != nil {
		return fmt.Errorf("record: %w", err)
	}
	device, err := os.Open(o.log)
	if err != nil {
		return err
	}
	defer device.Close()
	log, err := logwrites.Read(device)
	if err != nil {
		return err
	}
	first := slices.IndexFunc(log.Entries, func(e logwrites.Entry) bool { return e.Mark == readyMark })
	if first < 0 {
		return errors.New("the record has no mark")
	}
	random := rand.New(rand.NewPCG(o.seed, 1))
	points := make([]logwrites.Point, o.points)
	for i := range points {
		points[i] = log.Draw(random, first+1)
	}
	slices.SortFunc(points, func(a, b logwrites.Point) int { return a.Settled - b.Settled })
	base, err := os.OpenFile(o.base, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer base.Close()
	replayed := 0
	for _, p := range points {
		for ; replayed < p.Settled; replayed++ {
			if err := log.Apply(log.Entries[replayed], base); err != nil {
				return err
			}
		}
		if err := base.Sync(); err != nil {
			return err
		}
		acknowledged := acknowledgedAt(log, p)
		start := time.Now()
		err := atPoint(ctx, control, o, log, p, r.at(acknowledged), out)
		if err != nil {
			return fmt.Errorf("with the power cut after entry %d of the record, and entries %v, of %d before %d, and %d "+
				"operations acknowledged: %w",
				p.Settled, p.Some, len(log.Entries), p.End, acknowledged, err)
		}
		out.phase(fmt.Sprintf("%4.1f s, entries: %d of %d, and %d of the next %d; %d operations acknowledged",
			time.Since(start).Seconds(),
			p.Settled, len(log.Entries), len(p.Some), p.End-p.Settled, acknowledged))
	}
	return nil
}

// acknowledgedAt returns the number of operations acknowledged at a point.
func acknowledgedAt(log *logwrites.Log, p logwrites.Point) (n int) {
	for _, e := range log.Entries[:p.End] {
		if i, err := strconv.Atoi(e.Mark); err == nil {
			n = i
		}
	}
	return n
}

// atPoint makes the disk of a point, starts thinsnap on it, verifies it, and removes everything.
func atPoint(
	ctx context.Context, control *devmapper.Control, o options, log *logwrites.Log, p logwrites.Point,
	m *model.Model, out *journal,
) (err error) {
	disk, remove, err := overlay(control, o.base)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	device, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	for _, i := range p.Some {
		if err = log.Apply(log.Entries[i], device); err != nil {
			break
		}
	}
	if err = errors.Join(err, device.Sync(), device.Close()); err != nil {
		return err
	}
	if err := mountReplayed(disk, directory); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unmount(directory)) }()
	defer func() { err = errors.Join(err, removeDevices(control, recordedPool)) }()
	server, err := startServer(o, recordedPool, "", filepath.Join(directory, "snapshots"))
	if err != nil {
		return err
	}
	defer server.Kill()
	v := verifier{sn: server.snapshotter, model: m, out: out, filesystem: o.filesystem}
	if err := v.run(ctx); err != nil {
		return err
	}
	if err := removeAll(ctx, server.snapshotter); err != nil {
		return err
	}
	if err := server.stop(); err != nil {
		return err
	}
	return server.check()
}

// overlay makes a device with the content of base that keeps its writes in memory.
func overlay(control *devmapper.Control, base string) (path string, remove func() error, err error) {
	if err := os.WriteFile(changesFile, nil, 0o600); err != nil {
		return "", nil, err
	}
	if err := os.Truncate(changesFile, changesSize); err != nil {
		return "", nil, err
	}
	loop, err := blockdev.LoopAttach(changesFile, blockdev.LoopOptions{})
	if err != nil {
		return "", nil, err
	}
	size, err := blockdev.Size(base)
	if err != nil {
		return "", nil, errors.Join(err, loop.Close())
	}
	// N keeps the exceptions in memory, too; chunks have 8 sectors
	// (Documentation/admin-guide/device-mapper/snapshot.rst).
	device, err := control.Activate(replayName, "", []devmapper.Target{
		{Length: size / 512, Type: "snapshot", Params: fmt.Sprintf("%s %s N 8", base, loop.Path)},
	}, false)
	if err != nil {
		return "", nil, errors.Join(err, loop.Close())
	}
	path, err = blockdev.Path(device.Number())
	return path, func() error { return errors.Join(control.Deactivate(replayName), loop.Close()) }, err
}

// removeDevices deactivates a pool and its volumes, as a shutdown does. It retries devices that are in use.
func removeDevices(control *devmapper.Control, pool string) error {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		devices, err := control.List()
		if err != nil {
			return err
		}
		left := 0
		for _, d := range devices {
			if d.Name == pool || strings.HasPrefix(d.Name, pool+"-snap-") {
				err = errors.Join(err, control.Deactivate(d.Name))
				left++
			}
		}
		if left == 0 || time.Now().After(deadline) {
			return err
		}
	}
}
