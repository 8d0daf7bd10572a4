package adoption

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
)

// Sizes of a pool in bytes. Its files are sparse.
const (
	dataBytes     = 2 << 30
	metadataBytes = 64 << 20
)

// pool is a thin pool that a user has made for the built-in, which has its name as pool_name.
type pool struct {
	*thin.Pool
	control *devmapper.Control
	lvm     string // VG/LV, or empty
	table   string // loaded by the user; empty with LVM
}

// newPool makes a pool, and removes it at the end of the test.
func newPool(t *testing.T, v variant) *pool {
	t.Helper()
	control, err := devmapper.Open()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, control.Close()) })
	p := &pool{control: control}
	data := attach(t, "data", dataBytes)
	if v.lvm {
		p.lvm = "vg-0/thin"
		p.Pool = thin.NewPool(control, "vg--0-thin")
		command(t, "vgcreate", "--yes", "vg-0", data)
		t.Cleanup(func() {
			p.deactivateVolumes(t)
			command(t, "vgremove", "--yes", "vg-0")
		})
		zero := "y"
		if v.skipsZeroing {
			zero = "n"
		}
		command(t, "lvcreate", "--yes", "--type", "thin-pool", "--extents", "90%FREE", "--zero", zero, "--name", "thin", "vg-0")
		return p
	}
	p.Pool = thin.NewPool(control, "devpool")
	metadata := attach(t, "metadata", metadataBytes)
	t.Cleanup(func() {
		p.deactivateVolumes(t)
		command(t, "dmsetup", "remove", "--retry", p.Name())
	})
	// As in docs/snapshotters/devmapper.md of containerd, with and without the option in firecracker-containerd's
	// script.
	p.table = fmt.Sprintf("0 %d thin-pool %s %s 128 32768", dataBytes/devmapper.SectorBytes, metadata, data)
	if v.skipsZeroing {
		p.table += " 1 skip_block_zeroing"
	}
	command(t, "dmsetup", "create", p.Name(), "--table", p.table)
	return p
}

// load loads the user's table of the pool again, as a reboot does.
func (p *pool) load(t *testing.T) {
	t.Helper()
	command(t, "dmsetup", "reload", p.Name(), "--table", p.table)
	command(t, "dmsetup", "resume", p.Name())
}

// attach makes a file, attaches a loop device to it and returns the device's path.
func attach(t *testing.T, name string, size int64) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, os.Truncate(file, size))
	device := command(t, "losetup", "--find", "--show", file)
	t.Cleanup(func() { command(t, "losetup", "--detach", device) })
	return device
}

// command runs a program without waiting for udev, and returns its output.
func command(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := harness.Run(append(os.Environ(), "DM_DISABLE_UDEV=1"), program, args...)
	require.NoError(t, err)
	return strings.TrimSpace(out)
}

// deactivateVolumes deactivates all volumes of the pool, as a reboot does.
func (p *pool) deactivateVolumes(t *testing.T) {
	t.Helper()
	for _, name := range p.active(t) {
		// A suspended device cannot be removed.
		command(t, "dmsetup", "resume", name)
		command(t, "dmsetup", "remove", "--retry", name)
	}
}

// active lists the mapped devices of the pool's volumes.
func (p *pool) active(t *testing.T) (names []string) {
	t.Helper()
	self, err := p.control.Info(p.Name())
	require.NoError(t, err)
	for _, name := range harnesstest.MappedDevices(t, "") {
		_, targets, err := p.control.Table(name)
		require.NoError(t, err)
		if len(targets) == 1 && targets[0].Type == thin.Type && strings.HasPrefix(targets[0].Params, self.Number()+" ") {
			names = append(names, name)
		}
	}
	return names
}

// used returns the number of allocated data blocks of the pool.
func (p *pool) used(t *testing.T) uint64 {
	t.Helper()
	status, err := p.Status(false)
	require.NoError(t, err)
	return status.DataUsed
}

// awaitUsed waits until this number of blocks is in use: volumes are deleted in the background.
func (p *pool) awaitUsed(t *testing.T, want uint64) {
	t.Helper()
	require.Eventually(t, func() bool { return p.used(t) == want }, time.Minute, 100*time.Millisecond,
		"not all of the pool is free again")
}
