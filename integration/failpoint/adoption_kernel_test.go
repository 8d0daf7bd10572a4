package failpoint

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	devmap "github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// TestAdoption kills `thinsnap adopt devmapper` and its undo at each failpoint that they pass if dmtest.Thorough, else
// at some of them. A second run completes; an undo restores containerd's snapshotter. Images are pulled for
// another snapshotter in between.
func TestAdoption(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	s := newBuiltin(t)
	before, data := s.state(), s.data()
	forward := s.passed("--yes")
	require.Equal(t, data, s.data(), "an adoption writes nothing to the pool")
	s.requireAdopted()
	s.thinsnap(func(c *client) {
		c.addAndRemove("more")
		c.collect() // removes snapshots that containerd's database lacks
		c.requireContent()
		c.collect() // removes the Views from thinsnap
	})
	back := s.passed("--undo")
	s.requireBack(before)
	var missing []string
	for _, name := range adoptFailpoints(t) {
		if !slices.Contains(forward, name) && !slices.Contains(back, name) {
			missing = append(missing, name)
		}
	}
	require.Empty(t, missing, "an adoption does not pass these failpoints")
	t.Logf("passes %v, and %v during the undo", forward, back)

	number, outer := 0, t
	part := func(name string, f func(number int)) {
		t.Run(name, func(t *testing.T) {
			s.T = t
			defer func() { s.T = outer }()
			number++
			s.stopZeroing()
			f(number)
			s.requireBack(before)
		})
		require.False(t, t.Failed(), "the former state was not restored")
	}
	for i, name := range forward {
		second := slices.Contains(forward[:i], name)
		if dmtest.Thorough() || name == "adoptAfterText" && !second {
			part(fmt.Sprintf("%s %d, run again", name, i), func(number int) {
				s.kill(name, second, "--yes")
				s.pull(number)
				s.run("--yes")
				s.requireAdopted()
				s.run("--undo")
			})
		}
		if dmtest.Thorough() || name == "adoptAfterRename" && second {
			part(fmt.Sprintf("%s %d, undo", name, i), func(number int) {
				s.kill(name, second, "--yes")
				s.pull(number)
				if s.canUndo() {
					s.run("--undo")
				}
			})
		}
	}
	for i, name := range back {
		if !dmtest.Thorough() && name != "adoptUndoAfterRestore" {
			continue
		}
		part(fmt.Sprintf("undo, %s %d", name, i), func(number int) {
			s.run("--yes")
			s.thinsnap(func(c *client) { c.addAndRemove(fmt.Sprint("more-", number)) })
			s.kill(name, slices.Contains(back[:i], name), "--undo")
			s.pull(number)
			if s.canUndo() {
				_, err := s.try(nil, "--yes")
				require.ErrorContains(s, err, "--undo")
				s.run("--undo")
			}
		})
	}
	s.devmapper(func(c *client) {
		c.requireContent()
		c.removeAll()
	})
	s.requireEmpty()
}

// TestAdoptionOfLVM: after an adoption, LVM zeroes new blocks of its pool.
func TestAdoptionOfLVM(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.RequireThorough(t)
	dmtest.NoLeaks(t)
	disk := os.Getenv("THINSNAP_DISK0")
	require.NotEmpty(t, disk, "THINSNAP_DISK0 names a disk that may be overwritten")
	command := func(args ...string) string {
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		require.NoError(t, err, "%v: %s", args, out)
		return strings.TrimSpace(string(out))
	}
	command("pvcreate", "--yes", disk)
	command("vgcreate", "--yes", "adopt-vg", disk)
	defer func() {
		command("vgremove", "--yes", "adopt-vg")
		command("pvremove", "--yes", disk)
	}()
	command("lvcreate", "--yes", "--type", "thin-pool", "--zero", "n", "--size", "1G", "--name", "pool", "adopt-vg")
	control, err := devmap.Open()
	require.NoError(t, err)
	defer func() { require.NoError(t, control.Close()) }()
	s := newBuiltinOn(t, control, "adopt--vg-pool", "/dev/mapper/adopt--vg-pool_tdata")
	before, data := s.state(), s.data()
	s.kill("adoptAfterZero", false, "--yes")
	s.run("--yes")
	require.Equal(t, data, s.data())
	s.requireAdopted()
	require.Equal(t, "zero", command("lvs", "--noheadings", "--options", "zero", "adopt-vg/pool"))
	s.thinsnap(func(c *client) {
		c.requireContent()
		c.collect()
	})
	s.run("--undo")
	s.requireBack(before)
	s.devmapper(func(c *client) {
		c.requireContent()
		c.removeAll()
	})
	s.requireEmpty()
}
