package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/dmtest/dmpool"
)

const (
	mib = 1 << 20
	// The same for thinsnap and the devmapper snapshotter.
	dataBytes, metadataBytes = 20 << 30, 256 * mib
	baseBytes                = 10 << 30
	// memoryDisk is the size of a disk in memory, which allocates only written blocks.
	memoryDisk = 60 << 30
	slowEvery  = 4
	// pause is long enough for the background work after an operation.
	pause = time.Second
)

// keep makes containerd's garbage collector keep a snapshot.
var keep = snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "bench"})

// target is a snapshotter as seen by containerd's clients.
type target struct {
	snapshots.Snapshotter
	name string
	// slow snapshotters take tenths of a second for each operation.
	slow bool
	// parent is the key of an image's top layer.
	parent string
	// pool is the snapshotter's pool; nil if it has none.
	pool *pool
	// pid is the id of the snapshotter's process.
	pid int
}

// suite is a containerd with all snapshotters on one disk, and the results so far.
type suite struct {
	b          testing.TB // of the running case
	ctx        context.Context
	report     *Report
	group      string // of rows
	tools      harness.Tools
	disk       string
	memory     string // a tmpfs; "" if all data is on a disk
	userMode   bool   // on a user-mode kernel
	images     harnesstest.Images
	containerd *harnesstest.Containerd
	conn       *grpc.ClientConn
	all        []*target
	targets    []*target     // those that take part in the case that runs
	admin      *admin.Client // of thinsnap; nil if it has no part
	floor      map[string][]float64

	keys     atomic.Int64
	removals []removal
}

// removal of a snapshot is due at the end of its case.
type removal struct {
	t   *target
	key string
}

// quiet shows the log only on a failure; package testing always prints a benchmark's.
type quiet struct{ testing.TB }

func (q quiet) Logf(format string, args ...any) {
	if q.Failed() {
		q.TB.Logf(format, args...)
	}
}

func newSuite(b *testing.B, names []string) *suite {
	b.Helper()
	t := quiet{b}
	dmtest.NoLeaks(t)
	tools, err := harness.FindTools("../..")
	require.NoError(t, err)
	s := &suite{b: t, report: new(Report), tools: tools, images: harnesstest.StartRegistry(t, tools)}
	s.disk = s.storage(*storageFlag)

	control, err := devmapper.Open()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, control.Close()) })
	setup := harness.Setup{Dir: s.dir("containerd")}
	version := "not measured"
	pools, pids := make(map[string]*pool), make(map[string]int)
	if slices.Contains(names, Thinsnap) {
		options := s.options("thinsnap")
		if *lvmFlag {
			options.Device = s.blankDisk()
		}
		daemon := harnesstest.StartThinsnapWith(t, tools, "bench-thinsnap", options)
		s.admin = daemon.Admin()
		info, err := s.admin.Info(b.Context())
		require.NoError(t, err)
		version = info.Daemon.Version
		pools[Thinsnap] = &pool{thin.NewPool(control, info.Pool.Name), control, info.Pool.Data.LoopFile}
		pids[Thinsnap] = daemon.PID()
		p := daemon.Proxy()
		p.Differ = "thinsnap-diff"
		setup.Proxies = append(setup.Proxies, p)
	}
	if slices.Contains(names, OverlayProxy) {
		p, pid := startOverlayProxy(t, s.dir("overlayfs-proxy"))
		pids[OverlayProxy] = pid
		setup.Proxies = append(setup.Proxies, p)
	}
	if slices.Contains(names, Devmapper) {
		p := dmpool.NewWith(t, dmpool.Options{
			Dir: s.dir("devmapper"), DataBytes: dataBytes, MetadataBytes: metadataBytes, ZeroBlocks: true,
		})
		pools[Devmapper] = &pool{p.Pool, control, p.DataFile}
		setup.Devmapper = &harness.Devmapper{Root: s.dir("devmapper-root"), PoolName: p.Name(), BaseSize: "10GiB"}
	}
	s.containerd = harnesstest.StartContainerdWith(t, tools, tools.Releases[0], setup)
	s.conn = s.containerd.Connect(t)
	s.ctx = namespaces.WithNamespace(context.WithoutCancel(b.Context()), s.containerd.Namespace)
	for _, name := range names {
		s.all = append(s.all, &target{
			Snapshotter: proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(s.conn), name),
			name:        name,
			slow:        name == Devmapper || name == Native,
			pool:        pools[name],
			pid:         cmp.Or(pids[name], s.containerd.PID()),
		})
	}
	s.facts(version)
	return s
}

// storage mounts a new file system for all data.
func (s *suite) storage(where string) string {
	switch where {
	case "disk":
		device := os.Getenv("THINSNAP_DISK0")
		require.NotEmpty(s.b, device, "THINSNAP_DISK0 names the disk that is used, and overwritten")
		s.report.Fact("storage", "ext4 on a disk")
		return harnesstest.FormatDisk(s.b, device)
	case "memory":
		dir := s.b.TempDir()
		require.NoError(s.b, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=75%"))
		s.b.Cleanup(func() { require.NoError(s.b, unix.Unmount(dir, 0)) })
		s.memory = dir
		s.report.Fact("storage", "ext4 on a loop device in memory")
		return harnesstest.FormatDisk(s.b, s.sparseFile("disk"))
	}
	require.Fail(s.b, "no such storage", where)
	return ""
}

// sparseFile creates a file in memory of memoryDisk bytes.
func (s *suite) sparseFile(name string) string {
	require.NotEmpty(s.b, s.memory, "-lvm needs -storage memory")
	file := filepath.Join(s.memory, name)
	require.NoError(s.b, os.WriteFile(file, nil, 0o600))
	require.NoError(s.b, os.Truncate(file, memoryDisk))
	return file
}

// blankDisk returns a blank disk in memory: a loop device.
func (s *suite) blankDisk() string {
	loop, err := blockdev.LoopAttach(s.sparseFile("lvm"), blockdev.LoopOptions{})
	require.NoError(s.b, err)
	s.b.Cleanup(func() { require.NoError(s.b, loop.Close()) })
	s.report.Fact("thinsnap's pool", "by LVM, on a loop device in memory")
	return loop.Path
}

// dir makes a directory on the disk.
func (s *suite) dir(name string) string {
	dir := filepath.Join(s.disk, name)
	require.NoError(s.b, os.Mkdir(dir, 0o711))
	return dir
}

// options returns thinsnap's options, with its data in a new directory.
func (s *suite) options(dir string) harness.Options {
	return harness.Options{
		Dir: s.dir(dir), DataSize: fmt.Sprint(dataBytes), MetadataSize: fmt.Sprint(metadataBytes),
		BaseSize: fmt.Sprint(baseBytes), LogLevel: "info",
	}
}

func (s *suite) facts(thinsnap string) {
	var uts unix.Utsname
	require.NoError(s.b, unix.Uname(&uts))
	s.report.Fact("kernel", unix.ByteSliceToString(uts.Release[:]))
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	require.NoError(s.b, err)
	s.report.Fact("CPUs", fmt.Sprintf("%d, %s", strings.Count(string(cpuinfo), "\nprocessor")+1, machine(string(cpuinfo))))
	s.userMode = strings.Contains(string(cpuinfo), inUserMode)
	answer, err := versionapi.NewVersionClient(s.conn).Version(s.ctx, &emptypb.Empty{})
	require.NoError(s.b, err)
	s.report.Fact("containerd", answer.Version)
	s.report.Fact("thinsnap", thinsnap)
	s.report.Fact("pools", fmt.Sprintf("loop files of %d GiB, blocks of 64 KiB, zeroed; snapshots of %d GiB with ext4", dataBytes>>30, baseBytes>>30))
	s.report.Fact("time", time.Now().UTC().Format(time.RFC3339))
}

// inUserMode is a line of a user-mode kernel's /proc/cpuinfo.
const inUserMode = "User Mode Linux"

// machine describes the machine, with the kind of its virtualization.
func machine(cpuinfo string) string {
	clocks, _ := os.ReadFile("/sys/devices/system/clocksource/clocksource0/available_clocksource") // there need not be any
	switch {
	case strings.Contains(cpuinfo, inUserMode):
		return "user mode"
	case strings.Contains(cpuinfo, "QEMU TCG"), strings.Contains(cpuinfo, "Nehalem Class"): // which integration/vm emulates
		return "emulated (TCG)"
	case strings.Contains(string(clocks), "kvm-clock"):
		return "virtual (KVM)"
	case strings.Contains(cpuinfo, " hypervisor"):
		return "virtual"
	default:
		return "no virtual machine"
	}
}

func (s *suite) begin(b *testing.B, group string, proxied bool) {
	b.Helper()
	s.b, s.group = quiet{b}, group
	s.targets = slices.DeleteFunc(slices.Clone(s.all), func(t *target) bool { return t.name == OverlayProxy && !proxied })
	s.ctx = namespaces.WithNamespace(context.WithoutCancel(b.Context()), s.containerd.Namespace)
	s.drain()
}

// end removes the snapshots of the case, also of a failed one.
func (s *suite) end() {
	for _, m := range slices.Backward(s.removals) {
		if err := m.t.Remove(s.ctx, m.key); err != nil && !errdefs.IsNotFound(err) {
			s.b.Errorf("clean up: %v", err)
		}
	}
	s.removals = nil
	s.drain()
}

// inTurn calls op for the snapshotters in turn, so that they are compared in the same minute, and repeats this for all
// rounds; slow snapshotters take part in every fourth round.
func (s *suite) inTurn(rounds int, op func(t *target)) { s.inTurnSlow(rounds, slowEvery, op) }

// inTurnSlow is inTurn, but slow snapshotters take part once in the given number of rounds (every).
func (s *suite) inTurnSlow(rounds, every int, op func(t *target)) {
	for round := range rounds {
		for _, t := range s.targets {
			if t.slow && round%every != 0 {
				continue
			}
			start := time.Now()
			op(t)
			if testing.Verbose() {
				fmt.Fprintf(os.Stderr, "%s: %s, round %d: %.1f s\n", s.group, t.name, round+1, time.Since(start).Seconds())
			}
		}
	}
}

// time adds op's duration in milliseconds to a row.
func (s *suite) time(row, column string, op func() error) {
	start := time.Now()
	err := op()
	s.report.Add(s.group, row, "ms", column, milliseconds(time.Since(start)))
	require.NoError(s.b, err)
}

// scaled returns the mark of a value that was scaled up from a smaller number.
func (s *suite) scaled(from, to int) string {
	if from == to {
		return ""
	}
	s.report.Note("* measured with %d and scaled up to %d", from, to)
	return "*"
}

func (s *suite) key() string { return fmt.Sprintf("bench-%d", s.keys.Add(1)) }

// later has a snapshot removed at the end of its case.
func (s *suite) later(t *target, key string) string {
	s.removals = append(s.removals, removal{t, key})
	return key
}

// prepare makes a snapshot that lasts until the end of its case.
func (s *suite) prepare(t *target, parent string) (string, []mount.Mount) {
	key := s.later(t, s.key())
	mounts, err := t.Prepare(s.ctx, key, parent, keep)
	require.NoError(s.b, err)
	return key, mounts
}

// layer commits an empty snapshot of parent that lasts until the end of its case.
func (s *suite) layer(t *target, parent string) string {
	key, _ := s.prepare(t, parent)
	layer := s.later(t, s.key())
	require.NoError(s.b, t.Commit(s.ctx, layer, key, keep))
	return layer
}

// collect has containerd collect its garbage. Only then does it delete removed snapshots in the snapshotters.
func (s *suite) collect() error {
	leases, id := leasesapi.NewLeasesClient(s.conn), s.key()
	_, err := leases.Create(s.ctx, &leasesapi.CreateRequest{ID: id})
	if err != nil {
		return err
	}
	_, err = leases.Delete(s.ctx, &leasesapi.DeleteRequest{ID: id, Sync: true})
	return err
}

// drain waits until the snapshotters have deleted all removed snapshots.
func (s *suite) drain() { require.NoError(s.b, s.awaitDrained()) }

func (s *suite) awaitDrained() error {
	if err := s.collect(); err != nil || s.admin == nil {
		return err
	}
	for deadline := time.Now().Add(5 * time.Minute); ; time.Sleep(2 * time.Millisecond) {
		info, err := s.admin.Info(s.ctx)
		if err != nil || info.Devices.Trash == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return errors.New("thinsnap does not empty its trash")
		}
	}
}
