package harnesstest

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Pull pulls and unpacks the image with ctr, and with the release's default of ctr for the transfer
// service.
func (c *Containerd) Pull(t testing.TB, snapshotter, image string, flags ...string) {
	t.Helper()
	args := append([]string{"images", "pull", "--plain-http", "--snapshotter", snapshotter}, flags...)
	c.Ctr(t, append(args, image)...)
}

// MountImage mounts a view of the image, calls use with the directory, and removes the view.
func (c *Containerd) MountImage(t testing.TB, snapshotter, image string, use func(dir string)) {
	t.Helper()
	dir := t.TempDir()
	c.Ctr(t, "images", "mount", "--snapshotter", snapshotter, image, dir)
	defer c.Ctr(t, "images", "unmount", "--snapshotter", snapshotter, "--rm", dir)
	use(dir)
}

// RemoveImage checks all layers, then removes an image and waits for the garbage collection of its
// content and snapshots.
func (c *Containerd) RemoveImage(t testing.TB, image string) {
	t.Helper()
	c.CheckLayers(t)
	c.Ctr(t, "images", "rm", "--sync", image)
}

// CollectGarbage collects all garbage. The snapshot of `ctr snapshots view` has no label that keeps
// it, but it then lasts until the next removal.
func (c *Containerd) CollectGarbage(t testing.TB) {
	t.Helper()
	c.Ctr(t, "leases", "create", "--id", "collect")
	c.Ctr(t, "leases", "rm", "--sync", "collect")
}

// Snapshot is one line of `ctr snapshots ls`.
type Snapshot struct {
	Key    string
	Parent string // empty if it has none
	Kind   string // Committed, Active or View
}

// Snapshots lists a snapshotter's snapshots.
func (c *Containerd) Snapshots(t testing.TB, snapshotter string) []Snapshot {
	t.Helper()
	lines := strings.Split(c.Ctr(t, "snapshots", "--snapshotter", snapshotter, "ls"), "\n")
	var found []Snapshot
	for _, line := range lines[1:] { // after the heading
		fields := strings.Fields(line)
		if len(fields) == 2 {
			found = append(found, Snapshot{Key: fields[0], Kind: fields[1]})
			continue
		}
		require.Len(t, fields, 3, "a line of ctr snapshots ls: %q", line)
		found = append(found, Snapshot{Key: fields[0], Parent: fields[1], Kind: fields[2]})
	}
	return found
}

// TopLayer returns the key of the snapshotter's only snapshot that is no other's parent.
func (c *Containerd) TopLayer(t testing.TB, snapshotter string) string {
	t.Helper()
	snapshots := c.Snapshots(t, snapshotter)
	parents := make(map[string]bool)
	for _, s := range snapshots {
		parents[s.Parent] = true
	}
	var top []string
	for _, s := range snapshots {
		if !parents[s.Key] {
			top = append(top, s.Key)
		}
	}
	require.Len(t, top, 1)
	return top[0]
}
