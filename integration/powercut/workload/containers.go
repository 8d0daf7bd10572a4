package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"

	"github.com/thinsnap/thinsnap/integration/powercut/images"
	"github.com/thinsnap/thinsnap/integration/powercut/model"
)

// mostImages and mostContainers limit the numbers at a time.
const (
	mostImages     = 3
	mostContainers = 3
)

// containers runs the work with containerd.
func containers(ctx context.Context, o options, m *model.Model, random *rand.Rand, out *journal) error {
	out.phase("start")
	server, err := startServer(o, "images", o.imagesPool, filepath.Join(directory, "images"))
	if err != nil {
		return err
	}
	defer server.Kill()
	c, err := startContainerd(o, server.Proxy())
	if err != nil {
		return err
	}
	out.phase("verify")
	if err := verifyContainers(ctx, c, m, out); err != nil {
		return err
	}
	if err := server.check(); err != nil {
		return err
	}
	out.phase("work")
	w := &containerWork{containerd: c, random: random, out: out, model: m, seed: o.seed, boot: o.boot}
	if !o.finish {
		return w.run()
	}
	if err := w.removeAll(ctx); err != nil {
		return err
	}
	if err := c.stop(); err != nil {
		return err
	}
	// The daemon still has snapshots of containerd, which has ended: this process is the client now.
	if _, err := list(ctx, server.snapshotter); err != nil {
		return err
	}
	if _, err := server.Admin().AcceptClient(ctx, ""); err != nil {
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

// containerWork pulls images and runs containers.
type containerWork struct {
	*containerd
	random *rand.Rand
	out    *journal
	model  *model.Model
	seed   uint64
	boot   int
	count  int
}

// run runs operations until one fails.
func (w *containerWork) run() error {
	if w.random.IntN(2) == 0 {
		if err := w.expire(); err != nil {
			return err
		}
	}
	for {
		var err error
		switch n := w.random.IntN(8); {
		case len(w.model.Images) == 0 || n < 3 && len(w.model.Images) < mostImages:
			err = w.pull()
		case n < 6 && len(w.model.Containers) < mostContainers:
			err = w.start()
		case len(w.model.Containers) > 0 && n%2 == 0:
			err = w.removeContainer(w.pick(slices.Collect(maps.Keys(w.model.Containers))))
		default:
			err = w.removeImage(w.pick(slices.Collect(maps.Keys(w.model.Images))))
		}
		if err != nil {
			return err
		}
	}
}

func (w *containerWork) pick(keys []string) string {
	slices.Sort(keys)
	return keys[w.random.IntN(len(keys))]
}

// expire deletes the leases that keep the content and snapshots of an interrupted operation, as their expiry would, and
// has containerd collect these.
func (w *containerWork) expire() error {
	leases, err := w.ctr("leases", "ls", "--quiet")
	for _, lease := range leases {
		if _, removeErr := w.ctr("leases", "rm", "--sync", lease); removeErr != nil {
			err = errors.Join(err, removeErr)
		}
	}
	return err
}

// pull pulls one of a few images, which may share layers, so that an image with an interrupted pull is pulled again.
func (w *containerWork) pull() error {
	number := w.random.Uint64N(mostImages + 2)
	image, err := images.New(w.seed, number)
	if err != nil {
		return err
	}
	e := &model.Event{
		Op: model.Pull, Key: fmt.Sprintf("%s/%d:latest", registryAddress, number), Name: image.Top, Digest: image.Digest,
	}
	return w.out.do(w.model, e, func() error {
		_, err := w.ctr("images", "pull", "--plain-http", "--snapshotter", "thinsnap", e.Key)
		return err
	})
}

// written returns the content that a container of this name writes.
func written(name string) string {
	var text string
	for i := range 300 {
		text += fmt.Sprintf("%s %d\n", name, i)
	}
	return text
}

// start runs a container that writes a file, and waits until the file is on stable storage.
func (w *containerWork) start() error {
	w.count++
	name := fmt.Sprintf("c-%d-%d", w.boot, w.count)
	script := fmt.Sprintf(`i=0; while [ $i -lt 300 ]; do echo "%s $i"; i=$((i+1)); done > /written && sync`, name)
	e := &model.Event{
		Op: model.Run, Key: name, Parent: w.pick(slices.Collect(maps.Keys(w.model.Images))),
		Digest: fmt.Sprintf("%x", sha256.Sum256([]byte(written(name)))),
	}
	return w.out.do(w.model, e, func() error {
		_, err := w.ctr("run", "--snapshotter", "thinsnap", e.Parent, name, "sh", "-c", script)
		return err
	})
}

func (w *containerWork) removeContainer(name string) error {
	return w.out.do(w.model, &model.Event{Op: model.RemoveContainer, Key: name}, func() error {
		_, err := w.ctr("containers", "rm", name)
		return err
	})
}

func (w *containerWork) removeImage(name string) error {
	return w.out.do(w.model, &model.Event{Op: model.RemoveImage, Key: name}, func() error {
		_, err := w.ctr("images", "rm", "--sync", name)
		return err
	})
}

// removeAll removes everything, until containerd has collected every snapshot.
func (w *containerWork) removeAll(ctx context.Context) error {
	if err := w.RemoveAll(); err != nil {
		return err
	}
	if _, err := w.ctr("leases", "create", "--id", "collect"); err != nil {
		return err
	}
	if err := w.expire(); err != nil {
		return err
	}
	left, err := list(ctx, w.snapshotter)
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("containerd keeps snapshots that nothing needs: %v", slices.Collect(maps.Keys(left)))
	}
	return err
}
