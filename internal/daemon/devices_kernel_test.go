package daemon

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// confinedMode names the variable with the pool mode of TestConfinedChild.
const confinedMode = "THINSNAP_TEST_CONFINED_MODE"

// deviceRule is a DeviceAllow= rule of systemd.
type deviceRule struct {
	block        bool
	major, minor uint32
	allMinors    bool
}

// readDeviceRule parses a rule of systemd.resource-control(5): a node, or a group of /proc/devices.
func readDeviceRule(t *testing.T, text string) deviceRule {
	t.Helper()
	name, access, ok := strings.Cut(text, " ")
	require.True(t, ok)
	require.Equal(t, "rw", access)
	if strings.HasPrefix(name, "/") {
		var st unix.Stat_t
		require.NoError(t, unix.Stat(name, &st), name)
		return deviceRule{block: st.Mode&unix.S_IFMT == unix.S_IFBLK, major: unix.Major(st.Rdev), minor: unix.Minor(st.Rdev)}
	}
	kind, group, _ := strings.Cut(name, "-")
	devices, err := os.ReadFile("/proc/devices")
	require.NoError(t, err)
	characters, blocks, _ := strings.Cut(string(devices), "Block devices:")
	list := map[string]string{"char": characters, "block": blocks}[kind]
	found := regexp.MustCompile(`(?m)^ *(\d+) ` + group + `$`).FindStringSubmatch(list)
	require.NotNil(t, found, "%s: the unit loads its module first", name)
	major, err := strconv.ParseUint(found[1], 10, 32)
	require.NoError(t, err)
	return deviceRule{block: kind == "block", major: uint32(major), allMinors: true}
}

// deviceFilter is the program that systemd attaches for DevicePolicy=closed with these rules. mknod
// is allowed for all devices: with systemd, udev creates the nodes.
func deviceFilter(rules []deviceRule) asm.Instructions {
	const accessMknod, blockDevice, charDevice = 1, 1, 2 // BPF_DEVCG_* of linux/bpf.h
	for _, std := range []struct{ major, minor uint32 }{{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 2}} {
		rules = append(rules, deviceRule{major: std.major, minor: std.minor})
	}
	program := asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, 0, asm.Word),
		asm.Mov.Reg(asm.R3, asm.R2),
		asm.And.Imm(asm.R2, 0xffff),
		asm.RSh.Imm(asm.R3, 16),
		asm.LoadMem(asm.R4, asm.R1, 4, asm.Word),
		asm.LoadMem(asm.R5, asm.R1, 8, asm.Word),
		asm.JEq.Imm(asm.R3, accessMknod, "allow"),
	}
	for i, rule := range rules {
		next, kind := fmt.Sprintf("rule%d", i+1), int32(charDevice)
		if rule.block {
			kind = blockDevice
		}
		program = append(program, asm.JNE.Imm(asm.R2, kind, next).WithSymbol(fmt.Sprintf("rule%d", i)),
			asm.JNE.Imm(asm.R4, int32(rule.major), next))
		if !rule.allMinors {
			program = append(program, asm.JNE.Imm(asm.R5, int32(rule.minor), next))
		}
		program = append(program, asm.Ja.Label("allow"))
	}
	return append(program,
		asm.Mov.Imm(asm.R0, 0).WithSymbol(fmt.Sprintf("rule%d", len(rules))), asm.Return(),
		asm.Mov.Imm(asm.R0, 1).WithSymbol("allow"), asm.Return())
}

// runConfined runs TestConfinedChild in a control group with the unit's rules and further ones.
func runConfined(t *testing.T, mode string, more ...string) (output string, err error) {
	t.Helper()
	unit, err := os.ReadFile("../../cmd/thinsnap/systemd/thinsnap.service")
	require.NoError(t, err)
	var rules []deviceRule
	for _, found := range regexp.MustCompile(`(?m)^DeviceAllow=(.*)$`).FindAllSubmatch(unit, -1) {
		rules = append(rules, readDeviceRule(t, string(found[1])))
	}
	for _, rule := range more {
		rules = append(rules, readDeviceRule(t, rule))
	}
	group := filepath.Join("/sys/fs/cgroup", filepath.Base(t.TempDir())+"-thinsnap-"+mode)
	require.NoError(t, os.Mkdir(group, 0o755))
	defer func() {
		// LVM's dmeventd outlives the child.
		require.NoError(t, os.WriteFile(filepath.Join(group, "cgroup.kill"), []byte("1"), 0o600))
		require.Eventually(t, func() bool { return os.Remove(group) == nil }, time.Minute, 10*time.Millisecond)
	}()
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.CGroupDevice, Instructions: deviceFilter(rules), License: "GPL"})
	require.NoError(t, err)
	defer program.Close()
	attached, err := link.AttachCgroup(link.CgroupOptions{Path: group, Attach: ebpf.AttachCGroupDevice, Program: program})
	require.NoError(t, err)
	defer attached.Close()
	dir, err := os.Open(group)
	require.NoError(t, err)
	defer dir.Close()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestConfinedChild$", "-test.v")
	cmd.Env = append(os.Environ(), confinedMode+"="+mode)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestWithTheUnitsDevices has a daemon make, use and destroy a pool with the devices that the
// systemd unit allows, and with the drop-in of docs/pools.md for a disk.
func TestWithTheUnitsDevices(t *testing.T) {
	disk := onDisk(t).Pool.DirectLVM.Device
	out, err := runConfined(t, config.ModeLoop)
	require.NoError(t, err, out)
	require.Contains(t, out, "--- PASS: TestConfinedChild")

	out, err = runConfined(t, config.ModeDirectLVM)
	require.Error(t, err, "a disk needs the drop-in")
	require.Contains(t, out, disk, "the error names it")
	pools, err := os.ReadFile("../../docs/pools.md")
	require.NoError(t, err)
	const dropIn = "DeviceAllow=/dev/disk/by-id/virtio-data rw"
	require.Contains(t, string(pools), "    [Service]\n    "+dropIn+"\n")
	out, err = runConfined(t, config.ModeDirectLVM, disk+" rw")
	require.NoError(t, err, out)
	require.Contains(t, out, "--- PASS: TestConfinedChild")
}

// TestConfinedChild runs in the control group of TestWithTheUnitsDevices.
func TestConfinedChild(t *testing.T) {
	mode := os.Getenv(confinedMode)
	if mode == "" {
		return // TestWithTheUnitsDevices starts it
	}
	dmtest.RequireKernel(t)
	node := filepath.Join(t.TempDir(), "kvm")
	require.NoError(t, unix.Mknod(node, unix.S_IFCHR|0o600, int(unix.Mkdev(10, 232))))
	_, err := os.Open(node)
	require.ErrorIs(t, err, unix.EPERM, "another node with the control devices' major number")
	c := config.Default()
	c.Root = filepath.Join(t.TempDir(), "root")
	c.Pool.Mode, c.Pool.Name, c.Filesystem.BaseSize = mode, "confined", 64<<20
	c.Pool.Loop.DataSize, c.Pool.Loop.MetadataSize = 1<<30, 16<<20
	c.Pool.DirectLVM.Device = os.Getenv("THINSNAP_DISK0")
	d, err := Open(t.Context(), c)
	require.NoError(t, err)
	defer destroy(t, c)
	layers(t, d, "one", "two")
	kinds, _ := findings(t, d, false)
	require.Empty(t, kinds)
	require.NoError(t, d.snapshotter.Remove(t.Context(), "two"))
	require.NoError(t, d.Close())
}
