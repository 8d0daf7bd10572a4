package adoption

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
)

// Containers and images of the namespace "default".
const (
	fromCtr = "from-ctr"                   // a container of ctr, and its snapshot
	stopped = "stopped"                    // a container of nerdctl
	second  = "docker.io/library/second:1" // has the layers of the first image, and one more
)

// Snapshots of the namespace "other".
const (
	lowerKey  = "lower"  // committed
	upperKey  = "upper"  // committed
	activeKey = "active" // active
	viewKey   = "view"   // a View, held by a label
	leaseID   = "lease"  // holds the other snapshots, and those of the namespace "broken"
)

// change is a script that changes a container's root file system. When run again, it prints a file of the first run.
const change = `[ -e /kept ] && exec cat /kept; echo kept > /kept && chmod 4711 /kept && ln /kept /linked && mkfifo /fifo &&
mkdir /owned && chown 7:8 /owned && rm -r /data /odd 2>/dev/null; echo more >> /etc/passwd && sync`

// image returns the name of the main image.
func (n *node) image() string {
	if n.small {
		return n.images.Busybox
	}
	return n.images.Debian
}

// content has the built-in make content as its users do.
func (n *node) content(t *testing.T) {
	t.Helper()
	n.onlySnapshots(t)
	n.Pull(t, harness.DevmapperName, n.image())
	n.Ctr(t, "run", "--snapshotter", harness.DevmapperName, n.image(), fromCtr, "sh", "-c", change)
	if !n.small {
		n.clients(t)
	}
}

// onlySnapshots has the built-in make snapshots of each kind, which takes little time.
func (n *node) onlySnapshots(t *testing.T) {
	t.Helper()
	n.createLease(t, otherNS)
	n.layer(t, otherNS, lowerKey, "")
	n.layer(t, otherNS, upperKey, lowerKey)
	n.prepare(t, otherNS, activeKey, upperKey)
	n.must(t, otherNS, harness.DevmapperName, func(c client) error {
		_, err := c.View(c, viewKey, upperKey, rooted())
		return err
	})
}

// clients makes content with nerdctl, and with the CRI as for a pod.
func (n *node) clients(t *testing.T) {
	t.Helper()
	dm := harness.DevmapperName
	n.Nerdctl(t, dm, "run", "--name", stopped, "--net", "none", n.image(), "sh", "-c", change)
	// nerdctl leaves the task of an ended container, and so its mount. Until the mount is gone, the built-in cannot
	// mount the volume to compare it.
	n.Ctr(t, "tasks", "rm", n.Nerdctl(t, dm, "inspect", "--format", "{{.ID}}", stopped))
	n.Nerdctl(t, dm, "commit", "--pause=false", stopped, second)
	n.Ctr(t, "-n", otherNS, "images", "pull", "--plain-http", "--snapshotter", dm, n.images.Busybox)
	n.Ctr(t, "-n", otherNS, "run", "--snapshotter", dm, n.images.Busybox, fromCtr, "sh", "-c", change)

	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	n.Ctr(t, "-n", criNS, "images", "import", "--snapshotter", dm, harnesstest.MakePauseImage(t, n.images.Busybox))
	kubelet := n.Kubelet(t)
	kubelet.Pull(ctx, t, n.images.Busybox, handler)
	n.pod = kubelet.StartPod(ctx, t, "pod", n.images.Busybox, handler)
	require.Contains(t, n.pod.Exec(ctx, t, `grep " / " /proc/mounts`), "/dev/mapper/"+n.pool.Name()+"-snap-")
	n.pod.Exec(ctx, t, change)
	n.pod.Stop(ctx, t)
}
