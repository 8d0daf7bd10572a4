package bench

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
)

// benchDiff makes a layer of two bytes that a container has written: on images of 16 layers, and on one of 1 GiB in
// 50,000 files.
func benchDiff(s *suite) {
	s.report.Note("A Diff of %s uses its own differ; the others use containerd's walking differ. All change one file of 2 bytes.",
		Thinsnap)
	quick := func(t *target) bool { return t.name == Thinsnap || t.name == Overlayfs }
	large := s.tools
	large.Images = s.tools.LargeImages
	largeImages := harnesstest.StartRegistry(s.b, large)
	for _, image := range []struct {
		name string
		top  func(t *target) string
	}{
		{"16 layers, 50 MB", func(t *target) string { return s.unpack(t, s.images.Layers16) }},
		{"16 layers, 240 MB", func(t *target) string { return s.unpack(t, largeImages.Layers16) }},
		{"1 GiB in 50,000 files", s.largeImage},
	} {
		tops := make(map[*target]string)
		for _, t := range s.targets {
			if quick(t) {
				tops[t] = image.top(t)
			}
		}
		for _, way := range []string{"", ", while it is written to"} {
			row := "Diff, " + image.name + way
			s.inTurn(3, func(t *target) {
				if quick(t) {
					s.diff(t, tops[t], row, way != "")
				}
			})
		}
		s.end()
		s.forget(s.images.Layers16)
		s.forget(largeImages.Layers16)
	}
	s.inTurn(3, func(t *target) {
		if quick(t) {
			s.nerdctlCommit(t)
		}
	})
}

// diff makes a container's snapshot of top, and the layer of its changes.
func (s *suite) diff(t *target, top, row string, busy bool) {
	key, mounts := s.prepare(t, top)
	lower, err := t.View(s.ctx, s.later(t, s.key()), top, keep)
	require.NoError(s.b, err)
	dir := filepath.Join(s.b.TempDir(), key)
	require.NoError(s.b, os.Mkdir(dir, 0o700))
	require.NoError(s.b, mount.All(mounts, dir))
	defer func() { require.NoError(s.b, mount.UnmountAll(dir, 0)) }()
	require.NoError(s.b, os.WriteFile(filepath.Join(dir, "two"), []byte("ab"), 0o644))
	if busy {
		defer s.writer(dir)()
	}
	upper, err := t.Mounts(s.ctx, key)
	require.NoError(s.b, err)
	s.time(row, t.name, func() error {
		_, err := diffapi.NewDiffClient(s.conn).Diff(s.ctx, &diffapi.DiffRequest{
			Left: mount.ToProto(lower), Right: mount.ToProto(upper),
		})
		return err
	})
}

// writer writes 4 KiB with fsync in a loop until it is stopped.
func (s *suite) writer(dir string) (stop func()) {
	ctx, cancel := context.WithCancel(s.ctx)
	var group sync.WaitGroup
	group.Go(func() {
		f, err := os.Create(filepath.Join(dir, "log"))
		if err != nil {
			return
		}
		defer f.Close()
		// The walking differ fails on a growing file.
		if err := f.Truncate(4 * mib); err != nil {
			return
		}
		for at := int64(0); ctx.Err() == nil; at = (at + 4096) % (4 * mib) {
			if _, err := f.WriteAt(make([]byte, 4096), at); err != nil {
				return
			}
			_ = f.Sync() // waits while the file system is frozen
		}
	})
	return func() {
		cancel()
		group.Wait()
	}
}

// largeImage commits a layer of many files, with times in whole seconds as in an image.
func (s *suite) largeImage(t *target) string {
	const files, perDir = 50_000, 100
	content := strings.Repeat("0123456789abcdef", 40<<10/16)
	whole := time.Unix(1_600_000_000, 0)
	key, mounts := s.prepare(t, "")
	require.NoError(s.b, mount.WithTempMount(s.ctx, mounts, func(root string) error {
		for i := range files {
			dir := filepath.Join(root, fmt.Sprintf("dir-%03d", i/perDir))
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			path := filepath.Join(dir, fmt.Sprintf("file-%05d", i))
			if err := os.WriteFile(path, []byte(content[:i*977%len(content)]), 0o644); err != nil {
				return err
			}
			if err := os.Chtimes(path, whole, whole); err != nil {
				return err
			}
		}
		return nil
	}))
	top := s.later(t, s.key())
	require.NoError(s.b, t.Commit(s.ctx, top, key, keep))
	return top
}

// nerdctlCommit makes an image of a running container.
func (s *suite) nerdctlCommit(t *target) {
	nerdctl := func(args ...string) {
		out, err := s.containerd.NerdctlCommand(t.name, args...).CombinedOutput()
		require.NoError(s.b, err, "%s", out)
	}
	name := s.key()
	nerdctl("run", "--detach", "--name", name, "--net", "none", s.images.Busybox, "sh", "-c", "echo a > /two && sleep 3600")
	s.time("nerdctl commit of a container that runs", t.name, func() error {
		cmd := s.containerd.NerdctlCommand(t.name, "commit", name, name+":1")
		cmd.Stdout, cmd.Stderr = io.Discard, io.Discard
		return cmd.Run()
	})
	nerdctl("rm", "--force", name)
	nerdctl("rmi", name+":1")
	s.drain()
}
