package doctor

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/setup"
)

// failing is a machine on which a check fails.
type failing struct {
	name   string // the name of the check
	spoil  func(b *bench)
	status Status
	seen   string // a part of Seen
	remedy string // a part of Remedy
}

// failures has at least one failure for each check.
func failures() []failing {
	return []failing{
		{"user", func(b *bench) { b.host.uid = 1000 }, Problem, "user 1000", "sudo thinsnap doctor"},

		{"configuration", func(b *bench) { b.config = []string{"nonsense = 1", "[pool]", "name = 7", "mode = \"raid\""} }, Problem,
			"3 errors", "thinsnap config check "},
		{"configuration", func(b *bench) { b.File = b.at("missing/config.toml") }, Problem, "no such file", "ls -l "},

		{"kernel", func(b *bench) { b.host.release = "5.10.0-35-amd64" }, Problem, "thinsnap needs 5.12", "# install Linux 5.12"},

		{"device-mapper", func(b *bench) { b.write("/proc/misc", ""); b.unit["LoadState"] = "not-found" }, Problem,
			"has not loaded device-mapper", "modprobe dm-thin-pool"},
		{"device-mapper", func(b *bench) {
			b.write("/proc/misc", "")
			b.write("/lib/modules/6.1.0-50-amd64/modules.dep", "kernel/fs/xfs.ko:\n")
		}, Problem, "has no module dm-thin-pool", "linux-modules-extra-$(uname -r)"},
		{"device-mapper", func(b *bench) {
			b.write("/proc/misc", "")
			b.write("/lib/modules/6.1.0-50-amd64/modules.dep", "kernel/fs/xfs.ko:\n")
			b.write("/etc/os-release", "ID=fedora\n")
		}, Problem, "has no module dm-thin-pool", "dnf install --assumeyes kernel-modules-core-$(uname -r)"},
		{"device-mapper", func(b *bench) {
			b.unit["LoadState"] = "not-found"
			b.host.targets = func() (map[string]devmapper.Version, error) {
				return map[string]devmapper.Version{"linear": {1, 4, 0}}, nil
			}
		}, Problem, "not its target thin-pool", "modprobe dm-thin-pool"},
		{"device-mapper", func(b *bench) {
			b.host.targets = func() (map[string]devmapper.Version, error) { return nil, devmapper.ErrUnavailable }
		}, Problem, "device-mapper", "ls -l /dev/mapper/control"},
		{"device-mapper", func(b *bench) { b.remove("/dev/mapper/control"); b.unit["LoadState"] = "not-found" }, Problem,
			"not its thin-pool target", "modprobe dm-thin-pool"},

		{"loop-devices", func(b *bench) { b.write("/proc/devices", ""); b.missing["modprobe"] = true }, Problem,
			"has not loaded its loop devices", "modprobe loop"},
		{"loop-devices", func(b *bench) { b.remove("/dev/loop-control") }, Problem, "/dev/loop-control is missing", "mknod"},

		{"programs", func(b *bench) { b.missing["mkfs.ext4"] = true }, Problem, "mkfs.ext4 is missing", "apt-get install --yes e2fsprogs"},
		{"programs", func(b *bench) { b.missing["thin_repair"] = true }, Warning, "`thinsnap pool repair` needs it",
			"apt-get install --yes thin-provisioning-tools"},
		{"programs", func(b *bench) {
			b.onDisk()
			b.missing["lvcreate"], b.missing["pvs"], b.missing["wipefs"] = true, true, true
			b.write("/etc/os-release", "ID=fedora\n")
		}, Problem, "wipefs is missing", "dnf install --assumeyes lvm2 util-linux"},

		{"udev", func(b *bench) { b.remove("/usr/lib/udev") }, Warning, "without device-mapper's rules", "apt-get install --yes dmsetup"},
		{"udev", func(b *bench) { b.onDisk(); b.remove("/run/udev") }, Warning, "no udev runs", "systemctl start systemd-udevd"},

		{"lvm", func(b *bench) { b.onDisk(); b.lvm = func(string) (string, error) { return "", nil } }, Problem,
			"global_filter in lvm.conf excludes it", "lvmconfig devices/global_filter"},
		{"lvm", func(b *bench) {
			b.onDisk()
			require.NoError(b.t, os.MkdirAll(b.at("root"), 0o700))
			require.NoError(b.t, os.WriteFile(b.at("root/metadata.db"), nil, 0o600))
			b.lvm = func(line string) (string, error) {
				if strings.Contains(line, "use_devicesfile=0") {
					return " /dev/sdb ", nil
				}
				return "", nil
			}
		}, Problem, "not in the devices file", "lvmdevices --adddev /dev/sdb"},
		{"lvm", func(b *bench) { b.onDisk(); b.filesystem.Flags = unix.ST_RDONLY }, Problem, "/etc/lvm/profile is on a read-only",
			"mount -o remount,rw "},
		{"lvm", func(b *bench) { b.onDisk(); b.lvm = func(string) (string, error) { return "", errors.New("hangs") } }, Problem,
			"LVM does not answer: hangs", "lvmdiskscan"},

		{"root", func(b *bench) {
			require.NoError(b.t, os.Mkdir(b.at("root"), 0o700))
			require.NoError(b.t, os.Chmod(b.at("root"), 0o777))
		}, Problem, "has mode 0777", "ls -la "},

		{"root-file-system", func(b *bench) { b.filesystem.Type = unix.TMPFS_MAGIC }, Warning, "is on a tmpfs", "# set root in "},
		{"root-file-system", func(b *bench) { b.filesystem.Flags = unix.ST_RDONLY }, Problem, "read-only", "mount -o remount,rw "},

		{"new-pool", func(b *bench) {
			b.stopped()
			require.NoError(b.t, os.MkdirAll(b.at("root/pool"), 0o700))
			require.NoError(b.t, os.WriteFile(b.at("root/pool/data"), nil, 0o600))
		}, Problem, "exists, but the store records no pool", "thinsnap pool create --dry-run"},
		{"new-pool", func(b *bench) {
			b.stopped()
			b.root = "/proc/doctor" // a file system without free space
		}, Problem, "bytes free, and a pool needs", "df -h "},
		{"new-pool", func(b *bench) { b.stopped(); b.onDisk() }, Problem, "/dev/sdb", "lsblk"},

		{"unit", func(b *bench) { b.unit["LoadState"] = "not-found"; b.stopped() }, Problem, "there is no thinsnap.service",
			"systemctl daemon-reload"},
		{"unit", func(b *bench) { b.unit["LoadState"] = "masked" }, Problem, "is masked", "systemctl unmask thinsnap.service"},
		{"unit", func(b *bench) { b.unit["LoadState"], b.unit["LoadError"] = "bad-setting", "no ExecStart" }, Problem, "no ExecStart",
			"systemd-analyze verify thinsnap.service"},
		{"unit", func(b *bench) {
			b.unit["ActiveState"], b.unit["Result"], b.unit["ExecMainStatus"] = "failed", "exit-code", "78"
		},
			Problem, "with status 78", "thinsnap config check"},
		{"unit", func(b *bench) {
			b.unit["ActiveState"], b.unit["Result"], b.unit["ExecMainStatus"] = "failed", "timeout", "1"
		},
			Problem, "timeout, status 1", "journalctl --unit thinsnap"},
		{"unit", func(b *bench) { b.unit["SubState"], b.unit["NRestarts"] = "auto-restart", "12" }, Problem, "12 restarts", "journalctl"},
		{"unit", func(b *bench) { b.unit["NeedDaemonReload"] = "yes" }, Warning, "have changed", "systemctl daemon-reload"},
		{"unit", func(b *bench) { b.unit["ActiveState"], b.socket["ActiveState"] = "inactive", "inactive" }, Problem,
			"nothing answers containerd", "systemctl enable --now thinsnap.socket thinsnap.service"},
		{"unit", func(b *bench) { b.unit["UnitFileState"] = "disabled" }, Warning, "does not start with the machine", "systemctl enable"},
		{"unit", func(b *bench) { b.noSystemctl = true }, Problem, "ask systemd", "systemctl status thinsnap"},

		{"unit-devices", func(b *bench) { b.onDisk(); b.unit["DeviceAllow"] = "block-loop rw" }, Problem, "bars LVM from /dev/sdb",
			"--runtime kata --disk /dev/sdb"},
		{"unit-devices", func(b *bench) { b.onDisk(); b.unit["DeviceAllow"] = ""; b.states = nil }, Problem, "bars LVM from /dev/sdb",
			`'[Unit]\nWants=%s\nAfter=lvm2-monitor.service %s\n[Service]\nDeviceAllow=%s rw\n' ` +
				strings.Repeat("dev-sdb.device ", 2) + "/dev/sdb >> /etc/systemd/system/thinsnap.service.d/disks.conf"},
		{"unit-devices", func(b *bench) { b.onDisk(); b.unit["DeviceAllow"] = "/dev/sdb r" }, Problem, "bars LVM", "systemctl daemon-reload"},
		{"unit-devices", func(b *bench) { b.onDisk(); b.inGroup("/dev/sdb", "/dev/sdc") }, Problem, "bars LVM from /dev/sdc",
			"/dev/sdc >> /etc/systemd/system/thinsnap.service.d/disks.conf"},
		{"unit-devices", func(b *bench) {
			b.onDisk()
			b.inGroup("/dev/sdc")
			b.diskMissing, b.unit["DeviceAllow"] = true, "/dev/sdc rw"
		}, Problem, "bars LVM from /dev/sdb", "--disk /dev/sdb"},

		{"socket-unit", func(b *bench) { b.socket["Listen"] = "/run/other.sock (Stream)" }, Problem, "listens on /run/other.sock",
			"thinsnap.socket.d/address.conf"},
		{"socket-unit", func(b *bench) { b.socket["SocketMode"] = "0666" }, Problem, "SocketMode=", "systemctl edit thinsnap.socket"},
		{"socket-unit", func(b *bench) { b.socket["ActiveState"], b.socket["Result"] = "failed", "trigger-limit-hit" }, Problem,
			"trigger-limit-hit", "systemctl reset-failed thinsnap.socket"},
		{"socket-unit", func(b *bench) { b.socket["ActiveState"] = "inactive" }, Warning, "not active", "systemctl enable thinsnap.socket"},
		{"socket-unit", func(b *bench) { b.socket["LoadState"] = "masked" }, Problem, "masked", "systemctl unmask thinsnap.socket"},

		{"socket", func(b *bench) { require.NoError(b.t, os.Remove(b.at("thinsnap.sock"))); b.remove("/run/systemd") }, Problem,
			"does not exist", "serve"},
		{"socket", func(b *bench) { b.write("/proc/net/unix", "") }, Problem, "nothing listens", "systemctl restart thinsnap"},
		{"socket", func(b *bench) { require.NoError(b.t, os.Chmod(b.at("thinsnap.sock"), 0o666)) }, Warning, "mode 0666", "chmod 0600"},
		{"socket", func(b *bench) {
			require.NoError(b.t, os.Remove(b.at("thinsnap.sock")))
			require.NoError(b.t, os.WriteFile(b.at("thinsnap.sock"), nil, 0o600))
		}, Problem, "is not a socket", "ls -l"},
		{"socket", func(b *bench) { require.NoError(b.t, os.Chmod(b.dir, 0o777)) }, Problem, "has mode 0777", "ls -ld"},

		{"daemon", func(b *bench) { b.infoErr = fmt.Errorf("%w: no disk", admin.ErrNotOpen) }, Problem, "no disk", "journalctl"},
		{"daemon", func(b *bench) { b.stopped(); b.socket["ActiveState"] = "inactive" }, Problem, "but a process listens", "restart thinsnap"},
		{"daemon", func(b *bench) { b.infoErr = errors.New("hangs") }, Problem, "hangs", "journalctl"},
		{"daemon", func(b *bench) { b.info.Daemon.Version = "0.9" }, Warning, "version: the daemon has 0.9", "systemctl restart thinsnap"},

		{"pool", func(b *bench) { b.info.Pool.NeedsCheck = true }, Problem, "needs_check", "thinsnap pool check"},
		{"pool", func(b *bench) { b.info.Pool.State = admin.StateFailed }, Problem, "fail", "thinsnap pool check"},
		{"pool", func(b *bench) { b.info.Pool.State = admin.StateOutOfDataSpace }, Problem, "full", "thinsnap pool extend --data"},
		{"pool", func(b *bench) { b.info.Pool.State = admin.StateReadOnly }, Problem, "a write to its metadata failed", "dmesg"},
		{"pool", func(b *bench) {
			b.info.Pool.State, b.info.Pool.Metadata.Level = admin.StateReadOnly, admin.LevelShort
		}, Problem, "its metadata is full", "thinsnap pool extend --metadata"},
		{"pool", func(b *bench) { b.info.Pool.Data.Level = admin.LevelShort }, Problem, "new snapshots are refused", "thinsnap pool extend --data"},
		{"pool", func(b *bench) { b.info.Pool.Metadata.Level = admin.LevelShort }, Problem, "of metadata", "pool extend --metadata"},
		{"pool", func(b *bench) { b.info.Pool.Autoextend.Stuck = "no free extents" }, Warning, "no free extents", "thinsnap pool status"},
		{"pool", func(b *bench) { b.info.Pool.NotAllocated = "no fallocate" }, Warning, "no fallocate", "thinsnap pool status"},
		{"pool", func(b *bench) { b.info.Pool.Overpromised = 1 << 30 }, Warning, "promises 1GiB more", "thinsnap pool status"},
		{"pool", func(b *bench) { b.info.Pool.Data.Level = admin.LevelLow }, Warning, "of data are available", "pool extend --data"},
		{"pool", func(b *bench) { b.info.Pool.Metadata.Level = admin.LevelLow }, Warning, "of metadata are", "pool extend --metadata"},

		{"client", func(b *bench) { b.info.Client.RefusedCalls, b.info.Client.LastRefused = 3, "process 9" }, Warning,
			"3 calls of another process", "thinsnap info"},
		{"client", func(b *bench) {
			b.info.Clients = []admin.ClientInfo{{Name: "k3s", Since: time.Now(), Alive: true, KeptSnapshots: 1}}
		},
			Warning, "client k3s: 1 snapshot of an earlier client", "thinsnap client accept"},
		{"client", func(b *bench) { b.info.Client.KeptSnapshots = 2 }, Warning, "2 snapshots of an earlier client", "thinsnap client accept"},

		{"containerd", func(b *bench) { b.states = nil }, Problem, "there is no containerd", "apt-get install --yes containerd"},
		{"containerd", func(b *bench) { b.states[0].PID = 0 }, Problem, "does not run", "systemctl enable --now containerd"},
		{"containerd", func(b *bench) { b.states[0].release = setup.Release{Major: 1, Minor: 5, Text: "1.5.9"} }, Problem,
			"1.5.9 is older than 1.6", "# install containerd 1.6"},
		{"containerd", func(b *bench) { b.states[0].err = errors.New("line 3: no value") }, Problem, "line 3", "config dump"},

		{"containerd-configuration", func(b *bench) { b.dump(&b.states[0], strings.NewReplacer("proxy_plugins", "other")) }, Problem,
			"has no thinsnap in proxy_plugins", "thinsnap setup containerd"},
		{"containerd-configuration", func(b *bench) { b.dump(&b.states[0], strings.NewReplacer("DIR/thinsnap.sock", "/run/x.sock")) }, Problem,
			`has the address "/run/x.sock"`, "systemctl restart containerd.service"},
		{"containerd-configuration", func(b *bench) { b.dump(&b.states[0], strings.NewReplacer("'snapshot'", "'content'")) }, Problem,
			`is "content", not "snapshot"`, "thinsnap setup containerd"},
		{"containerd-configuration", func(b *bench) {
			b.dump(&b.states[0], strings.NewReplacer("platform = 'linux/ARCH'\n  [proxy", "platform = 'linux/s390x'\n  [proxy"))
		}, Problem, `is "linux/s390x"`, "thinsnap setup containerd"},
		{"containerd-configuration", func(b *bench) { b.dump(&b.states[0], strings.NewReplacer("    root = 'DIR/root'", "")) }, Warning,
			"has no exports.root", "thinsnap setup containerd"},
		{"containerd-configuration", func(b *bench) { b.dump(&b.states[0], strings.NewReplacer("DIR/root", "/srv")) }, Warning,
			`exports.root of proxy_plugins.thinsnap is "/srv"`, "systemctl restart containerd.service"},

		{"unpacking", func(b *bench) {
			b.dump(&b.states[0], strings.NewReplacer("platform = 'linux/ARCH'\n  snapshotter = 'thinsnap'", ""))
		}, Problem, "not unpacked for thinsnap", "thinsnap setup containerd"},
		{"unpacking", func(b *bench) {
			b.states[0].release = setup.Release{Major: 1, Minor: 7}
			b.dump(&b.states[0], strings.NewReplacer("unpack_config", "other"))
		}, Warning, "by the transfer service", "thinsnap setup containerd"},

		{"runtimes", func(b *bench) {
			b.dump(&b.states[0], strings.NewReplacer("snapshotter = 'overlayfs'\n[plugins", "snapshotter = 'devmapper'\n[plugins"))
		}, Problem, `is "devmapper", which containerd has not loaded`, "plugins ls"},

		{"connection", func(b *bench) { b.states[0].loaded = plugins("zfs", "") }, Problem, "was started before",
			"systemctl restart containerd.service"},
		{"connection", func(b *bench) { b.states[0].loaded = plugins("thinsnap", "bad platform") }, Problem, "bad platform", "plugins ls"},
		{"connection", func(b *bench) { b.states[0].loadErr = net.ErrClosed }, Problem, "does not list its plugins", "systemctl restart"},
		{"connection", func(b *bench) { b.states[0].PID = 0 }, Problem, "does not run", "systemctl enable --now containerd"},

		{"mounts", func(b *bench) {
			require.NoError(b.t, os.Remove(b.at("host/proc/20/ns/mnt")))
			require.NoError(b.t, os.Symlink("mnt:[2]", b.at("host/proc/20/ns/mnt")))
			b.write("/proc/10/mountinfo", "21 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n")
			b.write("/proc/20/mountinfo", "30 2 8:1 / / rw - ext4 /dev/sda1 rw\n")
		}, Problem, "does not see the daemon's mounts", "systemctl cat thinsnap containerd"},

		{"selinux", func(b *bench) { b.write("/sys/fs/selinux/enforce", "1") }, Warning, "SELinux is enforcing", "mount_options = "},
	}
}

// TestEachCheckFails: each check finds its failure, and has a remedy.
func TestEachCheckFails(t *testing.T) {
	failed := make(map[string]bool)
	for _, c := range failures() {
		t.Run(c.name+"/"+c.seen, func(t *testing.T) {
			b := newBench(t)
			c.spoil(b)
			found := b.look(c.name)
			require.Equal(t, c.status, found.Status, found.Seen)
			require.Contains(t, found.Seen, c.seen)
			require.Contains(t, strings.Join(found.Remedy, "\n"), c.remedy)
		})
		failed[c.name] = true
	}
	for _, c := range checks() {
		require.True(t, failed[c.name], "no test in which %s fails", c.name)
	}
}

// TestOtherMachines: machines that look faulty and are not.
func TestOtherMachines(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(b *bench)
		status Status
		seen   string
	}{
		{"configuration", func(b *bench) { b.File, b.Optional = b.at("none/config.toml"), true }, OK, "the defaults apply"},
		{"device-mapper", func(b *bench) { b.write("/proc/misc", "") }, OK, "the unit loads the module dm-thin-pool"},
		{"device-mapper", func(b *bench) {
			b.remove("/dev/mapper/control")
			b.write("/sys/module/dm_thin_pool/refcnt", "0")
		}, OK, "thinsnap makes /dev/mapper/control"},
		{"loop-devices", func(b *bench) { b.onDisk(); b.write("/proc/devices", "") }, Skipped, "needs none"},
		{"loop-devices", func(b *bench) { b.write("/proc/devices", "") }, OK, "the unit loads the module loop"},
		{"udev", func(b *bench) { b.remove("/run/udev") }, OK, "no udev runs"},
		{"lvm", func(b *bench) { b.onDisk() }, OK, "LVM 2.03.16(2); it accepts /dev/sdb"},
		{"unit", func(b *bench) { b.remove("/run/systemd") }, Skipped, "systemd is not the init"},
		{"unit", func(b *bench) { b.unit["LoadState"] = "not-found" }, Skipped, "the daemon runs without it"},
		{"unit", func(b *bench) { b.unit["ActiveState"] = "inactive" }, OK, "inactive"},
		{"unit-devices", func(b *bench) { b.onDisk(); b.unit["DeviceAllow"] = "/dev/sdb rw" }, OK, "allows /dev/sdb"},
		{"unit-devices", func(b *bench) { b.onDisk(); b.unit["DeviceAllow"] = "block-s* rw" }, OK, "allows /dev/sdb"},
		{"unit-devices", func(b *bench) { b.onDisk(); b.inGroup("/dev/sdc"); b.unit["DeviceAllow"] = "/dev/sdc rw" }, OK,
			"the unit allows /dev/sdc"}, // /dev/sdb was replaced, and is still attached
		{"unit-devices", func(b *bench) { b.onDisk(); b.unit["DeviceAllow"], b.unit["DevicePolicy"] = "", "auto" }, OK, "allows"},
		{"socket-unit", func(b *bench) { b.socket["LoadState"] = "not-found" }, Skipped, "makes its socket itself"},
		{"daemon", func(b *bench) { b.stopped() }, OK, "the first call of containerd starts it"},
		{"client", func(b *bench) { b.info.Client = admin.ClientInfo{} }, OK, "no containerd has called yet"},
		{"client", func(b *bench) { b.info.Client.Alive = false }, OK, "has ended"},
		{"unpacking", func(b *bench) {
			b.states[0].release = setup.Release{Major: 1, Minor: 6, Text: "1.6.20"}
			b.dump(&b.states[0], strings.NewReplacer("unpack_config", "other"))
		}, OK, "no transfer service"},
		{"runtimes", func(b *bench) {}, OK, "runtimes.kata"},
		{"mounts", func(b *bench) {
			require.NoError(b.t, os.Remove(b.at("host/proc/20/ns/mnt")))
			require.NoError(b.t, os.Symlink("mnt:[2]", b.at("host/proc/20/ns/mnt")))
			b.write("/proc/10/mountinfo", "21 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n")
			b.write("/proc/20/mountinfo", "30 2 8:1 / / rw shared:1 master:4 - ext4 /dev/sda1 rw\n")
		}, OK, "with shared mounts"},
		{"selinux", func(b *bench) {
			b.write("/sys/fs/selinux/enforce", "1")
			b.config = []string{"[filesystem]", `mount_options = ["context=system_u:object_r:container_file_t:s0"]`}
		}, OK, "has a context"},
		{"selinux", func(b *bench) {
			b.write("/sys/fs/selinux/enforce", "1")
			b.dump(&b.states[0], strings.NewReplacer("[plugins.'io.containerd.cri.v1.images']", "[plugins.'io.containerd.cri.v1.runtime']\n enable_selinux = true\n[plugins.'io.containerd.cri.v1.images']"))
		}, OK, "enable_selinux"},
	} {
		t.Run(c.name+"/"+c.seen, func(t *testing.T) {
			b := newBench(t)
			c.change(b)
			found := b.look(c.name)
			require.Equal(t, c.status, found.Status, found.Seen)
			require.Contains(t, found.Seen, c.seen)
			require.Empty(t, found.Remedy)
		})
	}
}

// TestSeveralContainerds: each containerd with thinsnap is named, and the worst status counts.
func TestSeveralContainerds(t *testing.T) {
	b := newBench(t)
	k3s := b.containerd()
	k3s.Kind, k3s.Unit, k3s.loaded = setup.K3s, "k3s.service", plugins("zfs", "")
	other := b.containerd()
	other.Unit, other.Kind = "docker.service", setup.Docker
	b.dump(&other, strings.NewReplacer("proxy_plugins", "none"))
	b.states = append(b.states, k3s, other)
	found := b.look("connection")
	require.Equal(t, Problem, found.Status)
	require.Equal(t, []string{"systemctl restart k3s.service"}, found.Remedy)
	require.Len(t, strings.Split(found.Seen, "\n"), 2)
	require.Contains(t, found.Seen, "containerd: it has loaded")
	require.Contains(t, found.Seen, "k3s: it has not loaded")
}

// TestFurtherClient: a containerd with the socket of a further client is one of ours.
func TestFurtherClient(t *testing.T) {
	b := newBench(t)
	b.config = []string{"[[clients]]", `name = "k3s"`, fmt.Sprintf("address = %q", b.at("k3s.sock"))}
	k3s := b.containerd()
	k3s.Kind, k3s.Unit = setup.K3s, "k3s.service"
	b.dump(&k3s, strings.NewReplacer("DIR/thinsnap.sock", b.at("k3s.sock")))
	b.states = append(b.states, k3s)
	found := b.look("connection")
	require.Equal(t, OK, found.Status)
	require.Contains(t, found.Seen, "k3s: it has loaded the plugin thinsnap")
}

// TestSetupCommand: the command in a remedy keeps the options in force, because each set-up
// replaces those of the last.
func TestSetupCommand(t *testing.T) {
	b := newBench(t)
	b.Optional = true
	dumpWith := func(s *containerdState, from, to string) { b.dump(s, strings.NewReplacer(from, to)) }
	b.ask()
	for want, change := range map[string]func(s *containerdState){
		"thinsnap setup containerd --runtime kata": func(*containerdState) {},
		"thinsnap setup containerd --containerd-config /etc/c.toml --default --runtime kata": func(s *containerdState) {
			s.Config = "/etc/c.toml"
			dumpWith(s, "[plugins.'io.containerd.cri.v1.images']\n  snapshotter = 'overlayfs'",
				"[plugins.'io.containerd.cri.v1.images']\n  snapshotter = 'thinsnap'")
		},
		"thinsnap setup containerd --default": func(s *containerdState) {
			s.release = setup.Release{Major: 1, Minor: 7}
			dumpWith(s, "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kata]", "[plugins.'io.containerd.grpc.v1.cri'.containerd]")
		},
		"thinsnap setup k3s": func(s *containerdState) {
			s.Kind, s.release = setup.K3s, setup.Release{Major: 1, Minor: 7}
		},
		"thinsnap setup docker": func(s *containerdState) { s.Kind = setup.Docker },
	} {
		s := b.containerd()
		change(&s)
		require.Equal(t, want, b.setup(s))
	}
}

// TestContainerdThatDoesNotListen: the check does not wait for a containerd that does not listen.
func TestContainerdThatDoesNotListen(t *testing.T) {
	dir, err := os.MkdirTemp("", "doctor")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	closed, err := net.ListenUnix("unix", &net.UnixAddr{Name: dir + "/closed", Net: "unix"})
	require.NoError(t, err)
	closed.SetUnlinkOnClose(false)
	require.NoError(t, closed.Close())
	for _, name := range []string{"/none", "/closed"} {
		_, err = loadedPlugins(t.Context(), dir+name)
		require.Equal(t, codes.Unavailable, grpcstatus.Code(err), "%v", err)
	}
}

// TestRemnantOfK3s: a directory of k3s without its program is no problem if another containerd
// runs. dockerd's containerd is not the one to set up.
func TestRemnantOfK3s(t *testing.T) {
	b := newBench(t)
	remnant := containerdState{Containerd: setup.Containerd{Kind: setup.K3s, Executable: "/none"}, err: os.ErrNotExist}
	docker := b.containerd()
	docker.Kind, docker.Unit = setup.Docker, "docker.service"
	for _, s := range []*containerdState{&docker, &b.states[0]} {
		b.dump(s, strings.NewReplacer("proxy_plugins", "other"))
	}
	b.states = []containerdState{docker, b.states[0], remnant}
	require.Equal(t, OK, b.look("containerd").Status)
	require.Contains(t, b.look("containerd-configuration").Remedy, "thinsnap setup containerd --config "+b.File)
	b.states = b.states[2:]
	require.Equal(t, Problem, b.look("containerd").Status)
}
