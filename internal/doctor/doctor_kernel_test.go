package doctor

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/dmtest/dmpool"
)

// TestFileSystemWithoutDirectIO: ramfs has no direct I/O.
func TestFileSystemWithoutDirectIO(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	dir := t.TempDir()
	require.NoError(t, unix.Mount("ramfs", dir, "ramfs", 0, "mode=0700"))
	defer func() { require.NoError(t, unix.Unmount(dir, 0)) }()
	require.ErrorIs(t, directIO(dir), unix.EINVAL)
	require.NoError(t, directIO("/proc"), "unknown")
	b := newBench(t)
	b.root = dir + "/root"
	found := b.look("root-file-system")
	require.Equal(t, Problem, found.Status)
	require.Contains(t, found.Seen, "has no direct I/O")
}

// onKernel returns one check's result on this machine, with a configuration.
func onKernel(t *testing.T, name, config string) Result {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o700))
	file := filepath.Join(dir, "config.toml")
	text := fmt.Sprintf("version = 1\nroot = %q\naddress = %q\nadmin_address = %q\n%s\n", dir+"/root", "/tmp/none/thinsnap.sock",
		"/tmp/none/admin.sock", config)
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	for _, r := range Run(t.Context(), Options{File: file}).Checks {
		if r.Name == name {
			return r
		}
	}
	require.Fail(t, "no such check", name)
	return Result{}
}

func TestDeviceMapperOfTheKernel(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	found := onKernel(t, "device-mapper", "")
	require.Equal(t, OK, found.Status, found.Seen)
	require.Regexp(t, `^target thin-pool 1\.\d+\.\d+, target thin 1\.\d+\.\d+$`, found.Seen)
	require.Equal(t, OK, onKernel(t, "loop-devices", "").Status)
}

// TestNameThatIsTaken: another program has a mapped device with the pool's name.
func TestNameThatIsTaken(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	const config = "[pool]\nname = \"doctortaken\""
	require.Equal(t, OK, onKernel(t, "new-pool", config).Status)
	control, err := devmapper.Open()
	require.NoError(t, err)
	_, err = control.Create("doctortaken", "OTHER-1")
	require.NoError(t, err)
	defer func() {
		_, err := control.Remove("doctortaken", devmapper.RemoveOptions{})
		require.NoError(t, err)
		require.NoError(t, control.Close())
	}()
	found := onKernel(t, "new-pool", config)
	require.Equal(t, Problem, found.Status)
	require.Contains(t, found.Seen, `device doctortaken has UUID "OTHER-1"`)
	require.Contains(t, found.Remedy, "dmsetup ls")
}

// TestForeignPool: the check looks for a pool in mode "existing", and does not activate it.
func TestForeignPool(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	const config = "[pool.existing]\ndevice = %q"
	absent := onKernel(t, "new-pool", fmt.Sprintf(config, "/dev/mapper/absent"))
	require.Equal(t, Problem, absent.Status)
	require.Contains(t, absent.Seen, "/dev/mapper/absent is not active")
	require.Equal(t, OK, onKernel(t, "new-pool", fmt.Sprintf(config, "absent/pool")).Status, "LVM activates it")

	o := dmpool.Options{Dir: t.TempDir(), DataBytes: 64 << 20, MetadataBytes: 4 << 20}
	unzeroed := onKernel(t, "new-pool", fmt.Sprintf(config, "/dev/mapper/"+dmpool.NewWith(t, o).Name()))
	require.Equal(t, Problem, unzeroed.Status)
	require.Contains(t, unzeroed.Seen, "does not zero new blocks")
	o.Dir, o.ZeroBlocks = t.TempDir(), true
	p := dmpool.NewWith(t, o)
	found := onKernel(t, "new-pool", fmt.Sprintf(config, "/dev/mapper/"+p.Name()))
	require.Equal(t, OK, found.Status, found.Seen)
	require.Contains(t, found.Seen, "is active, with blocks of 64KiB")
}

// TestDisk: LVM accepts a blank disk. It rejects a disk with partitions, on which the pool cannot
// be made either.
func TestDisk(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	disk := os.Getenv("THINSNAP_DISK0")
	require.NotEmpty(t, disk, "THINSNAP_DISK0 names a disk that may be overwritten")
	config := fmt.Sprintf("[pool.direct_lvm]\ndevice = %q", disk)
	found := onKernel(t, "lvm", config)
	require.Equal(t, OK, found.Status, found.Seen)
	require.Contains(t, found.Seen, "it accepts "+disk)
	found = onKernel(t, "new-pool", config)
	require.Equal(t, OK, found.Status, found.Seen)
	require.Contains(t, found.Seen, "pvcreate ")

	partition := make([]byte, 512) // a DOS partition table with one partition
	partition[450], partition[455], partition[460], partition[510], partition[511] = 0x83, 0x08, 0x10, 0x55, 0xaa
	require.NoError(t, os.WriteFile(disk, partition, 0))
	defer func() {
		out, err := exec.Command("wipefs", "--all", "--quiet", disk).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}()
	found = onKernel(t, "lvm", config)
	require.Equal(t, Problem, found.Status, found.Seen)
	require.Contains(t, found.Seen, "or it has partitions")
	require.Contains(t, found.Remedy, "lsblk "+disk)
	found = onKernel(t, "new-pool", config)
	require.Equal(t, Problem, found.Status, found.Seen)
	require.Contains(t, found.Seen, "is not empty (dos")

	missing := onKernel(t, "new-pool", "[pool.direct_lvm]\ndevice = \"/dev/missing\"")
	require.Equal(t, Problem, missing.Status)
	require.Contains(t, missing.Seen, "/dev/missing: no such file or directory")
	require.Contains(t, missing.Remedy[0], "lsblk")
}
