// Package adoption takes a node from containerd's built-in devmapper snapshotter to thinsnap, with a real containerd on
// both sides. The built-in makes the content of its pool. Kills of containerd, and edits, damage it.
package adoption

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// TestAdoption: all content of the built-in works with thinsnap, and nothing is left after its removal.
func TestAdoption(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	tools, err := harness.FindTools("../..")
	require.NoError(t, err)
	newest, oldest := tools.Releases[0], tools.Releases[1]
	for _, c := range []struct {
		name string
		variant
	}{
		{"small", variant{release: newest, filesystem: "ext4", skipsZeroing: true, small: true}},
		{"2.4 on ext4", variant{release: newest, filesystem: "ext4", skipsZeroing: true}},
		{"2.4 on xfs", variant{release: newest, filesystem: "xfs"}},
		{"2.4 with LVM", variant{release: newest, filesystem: "ext4", skipsZeroing: true, lvm: true}},
		{"1.6 on ext4", variant{release: oldest, filesystem: "ext4"}},
		{"1.6 on xfs", variant{release: oldest, filesystem: "xfs", skipsZeroing: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if !c.small {
				dmtest.RequireThorough(t)
			}
			n := newNode(t, tools, c.variant)
			n.content(t)
			n.newThinsnap(t)
			want, inventory := n.trees(t, harness.DevmapperName), n.inventory(t, harness.DevmapperName)
			n.damage(t)
			for _, key := range n.undamaged() {
				want[brokenNS+"/"+key] = n.made[brokenNS+"/"+key]
			}
			n.registry.Kill() // nothing can be pulled any more

			if !c.small {
				n.unmount(t)
				r, err := n.plan(t)
				require.Error(t, err, "damaged snapshots block the adoption")
				require.False(t, r.Possible)
				require.Empty(t, r.Obstacles)
			}
			r, err := n.plan(t, "--leave-out-damaged")
			require.NoError(t, err)
			require.True(t, r.Possible)
			require.Equal(t, c.skipsZeroing, r.Reload != nil)
			n.requireFates(t, r)

			n.adopt(t, "--leave-out-damaged")
			n.startAdopted(t)
			require.Subset(t, n.inventory(t, harness.ThinsnapName), inventory)
			n.use(t)
			if !c.small {
				n.removeLost(t)
			}
			require.Subset(t, n.inventory(t, harness.ThinsnapName), inventory, "nothing was unpacked again")
			want.requireSame(t, n.trees(t, harness.ThinsnapName))

			if n.pod != nil {
				n.pod.Remove(t.Context(), t)
			}
			n.removeAll(t, harness.ThinsnapName)
			n.removeLeftovers(t)
			n.requireAsBefore(t)
		})
	}
}

// unmount follows the plan for a container of nerdctl that has ended, but whose root file system is still mounted.
func (n *node) unmount(t *testing.T) {
	t.Helper()
	mounts := harnesstest.Mounts(t, n.State)
	require.Len(t, mounts, 1)
	r, err := n.plan(t, "--leave-out-damaged")
	require.Error(t, err)
	require.Len(t, r.Obstacles, 1)
	require.Contains(t, r.Obstacles[0].Text, mounts[0])
	require.Contains(t, r.Obstacles[0].Remedy, "unmount")
	command(t, "umount", mounts[0])
}

// removeLost removes a container whose snapshot was left out of the adoption. The container cannot start.
func (n *node) removeLost(t *testing.T) {
	t.Helper()
	_, err := n.TryCtr("-n", brokenNS, "tasks", "start", lostContainer)
	require.ErrorContains(t, err, lostContainer)
	n.Ctr(t, "-n", brokenNS, "containers", "rm", lostContainer)
}

// use works with the adopted snapshots as a user of the built-in would.
func (n *node) use(t *testing.T) {
	t.Helper()
	sn := harness.ThinsnapName
	require.Contains(t, n.thinsnap.Run(t, "check"), "no problems found")
	if n.small {
		n.Ctr(t, "run", "--rm", "--snapshotter", sn, n.image(), "new", "true")
		require.Equal(t, "kept", n.Ctr(t, "tasks", "start", fromCtr))
		return
	}
	// Run a new container of an image with each client, and each old container again. The end of nerdctl's output may
	// be missing.
	look := `grep -q "^kept$" /kept && grep -q "^/dev/mapper/thinsnap-snap-[0-9]* / ` + n.filesystem + ` " /proc/mounts && echo new > /new`
	n.Ctr(t, "run", "--rm", "--snapshotter", sn, second, "new", "sh", "-c", look)
	n.Nerdctl(t, sn, "run", "--rm", "--net", "none", second, "sh", "-c", look)
	n.Nerdctl(t, sn, "start", "--attach", stopped)
	n.Ctr(t, "tasks", "rm", n.Nerdctl(t, sn, "inspect", "--format", "{{.ID}}", stopped))
	for _, ns := range []string{defaultNS, otherNS} {
		require.Equal(t, "kept", n.Ctr(t, "-n", ns, "tasks", "start", fromCtr))
	}

	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	pod := n.Kubelet(t).StartPod(ctx, t, "new", n.images.Busybox, handler)
	require.Contains(t, pod.Exec(ctx, t, `grep " / " /proc/mounts`), "/dev/mapper/thinsnap-snap-")
	pod.Remove(ctx, t)
}
