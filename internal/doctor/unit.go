package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/thinsnap/thinsnap/internal/config"
)

const (
	serviceUnit = "thinsnap.service"
	socketUnit  = "thinsnap.socket"
)

// unitState has the properties of a unit, as `systemctl show` prints them.
type unitState map[string][]string

const unitProperties = "LoadState,LoadError,ActiveState,SubState,Result,UnitFileState,FragmentPath,DropInPaths," +
	"NeedDaemonReload," +
	"ExecMainStatus,NRestarts,StatusText,DevicePolicy,DeviceAllow,Listen,SocketMode"

// readUnit reads a unit's properties from systemd. It returns nil if systemd is not the init.
func (h host) readUnit(ctx context.Context, name string) (unitState, error) {
	if !h.systemd() {
		return nil, nil
	}
	out, err := h.run(ctx, "systemctl", "show", "--property="+unitProperties, name)
	if err != nil {
		return nil, err
	}
	state := make(unitState)
	for line := range strings.Lines(out) {
		if key, value, isProperty := strings.Cut(strings.TrimSpace(line), "="); isProperty && value != "" {
			state[key] = append(state[key], value)
		}
	}
	return state, nil
}

// get returns a property, or "".
func (u unitState) get(key string) string { return strings.Join(u[key], " ") }

func (u unitState) exists() bool { return u.get("LoadState") == "loaded" }

func (u unitState) active() bool { return u.get("ActiveState") == "active" }

// listens reports whether systemd holds the socket and passes it to the service.
func (u unitState) listens() bool { return u.exists() && u.active() }

const journal = "journalctl --unit thinsnap --boot --lines 30 --no-pager"

func lookAtUnit(_ context.Context, m *machine) finding {
	u, err := m.unit()
	switch {
	case err != nil:
		return problem("ask systemd for thinsnap.service: "+err.Error(), "systemctl status thinsnap")
	case u == nil:
		return skipped("systemd is not the init")
	}
	if f, isBad := u.notLoaded(serviceUnit); isBad {
		if m.daemon().answers() && u.get("LoadState") == "not-found" {
			return skipped("there is no thinsnap.service; the daemon runs without it")
		}
		return f
	}
	sub, result, status := u.get("SubState"), u.get("Result"), u.get("ExecMainStatus")
	ends := fmt.Sprintf("%s, status %s", result, status)
	switch {
	case u.get("ActiveState") == "failed" && (status == "78" || status == "2"):
		return problem("the unit has failed with status "+status+" and is not restarted: its configuration, command line, "+
			"the root directory, the store or the kernel is refused", "thinsnap config check", journal,
			"systemctl start thinsnap")
	case u.get("ActiveState") == "failed":
		return problem("the unit has failed ("+ends+")", journal, "systemctl start thinsnap")
	case sub == "auto-restart":
		return problem(fmt.Sprintf("the daemon ends soon after each start (%s, %s restarts)", ends, u.get("NRestarts")),
			journal)
	case u.get("NeedDaemonReload") == "yes":
		return warning("the unit's files have changed since systemd read them", "systemctl daemon-reload",
			"systemctl restart thinsnap")
	}
	seen := u.get("FragmentPath")
	if dropIns := u.get("DropInPaths"); dropIns != "" {
		seen += ", with " + dropIns
	}
	seen += ": " + u.get("ActiveState")
	if text := u.get("StatusText"); text != "" {
		seen += ", " + text
	}
	enable := "systemctl enable --now thinsnap.socket thinsnap.service"
	socket, _ := m.socketUnit()
	if !u.active() && u.get("ActiveState") != "activating" && !socket.listens() {
		return problem(seen+": nothing answers containerd", enable)
	}
	if state := u.get("UnitFileState"); state == "disabled" {
		return warning(seen+"; it is not enabled, so it does not start with the machine", enable)
	}
	return ok("%s, %s", seen, u.get("UnitFileState"))
}

// notLoaded is the finding for a unit that systemd cannot load.
func (u unitState) notLoaded(name string) (f finding, isBad bool) {
	switch state := u.get("LoadState"); state {
	case "loaded":
		return finding{}, false
	case "not-found":
		return problem("there is no "+name, "# install thinsnap's package, or its unit as docs/installation.md says",
			"systemctl daemon-reload"), true
	case "masked":
		return problem(name+" is masked", "systemctl unmask "+name), true
	default:
		return problem(fmt.Sprintf("systemd cannot read %s (%s): %s", name, state, u.get("LoadError")),
			"systemd-analyze verify "+name), true
	}
}

// lookAtSocketUnit checks thinsnap.socket, with which systemd holds containerd's socket.
func lookAtSocketUnit(_ context.Context, m *machine) finding {
	u, err := m.socketUnit()
	switch {
	case err != nil:
		return problem("ask systemd for thinsnap.socket: "+err.Error(), "systemctl status thinsnap.socket")
	case u == nil:
		return skipped("systemd is not the init")
	case u.get("LoadState") == "not-found":
		return skipped("there is no thinsnap.socket; the daemon makes its socket itself")
	}
	if f, isBad := u.notLoaded(socketUnit); isBad {
		return f
	}
	address := m.config().Address
	hasAddress := func(listen string) bool { return strings.HasPrefix(listen, address+" (") }
	switch {
	case !slices.ContainsFunc(u["Listen"], hasAddress):
		return problem(fmt.Sprintf("thinsnap.socket listens on %s, but address is %s in the configuration", u.get("Listen"),
			address),
			"mkdir -p /etc/systemd/system/thinsnap.socket.d",
			fmt.Sprintf(`printf '[Socket]\nListenStream=\nListenStream=%%s\n' %s > /etc/systemd/system/thinsnap.socket.d/address.conf`,
				quote(address)),
			"systemctl daemon-reload", "systemctl stop thinsnap.socket thinsnap", "systemctl start thinsnap")
	case u.get("SocketMode") != "" && u.get("SocketMode") != "0600":
		return problem("SocketMode= of thinsnap.socket is "+u.get("SocketMode")+", with which thinsnap refuses the socket",
			"systemctl edit thinsnap.socket    # remove SocketMode=", "systemctl stop thinsnap.socket thinsnap",
			"systemctl start thinsnap")
	case u.get("ActiveState") == "failed":
		return problem("thinsnap.socket has failed ("+u.get("Result")+")", journal, "systemctl reset-failed thinsnap.socket",
			"systemctl start thinsnap")
	case !u.active():
		if s, err := m.unit(); err == nil && s.active() {
			return warning("thinsnap.socket is not active, so containerd's calls fail while the daemon restarts",
				"systemctl enable thinsnap.socket", "systemctl restart thinsnap")
		}
		return ok("%s: %s; the service starts it", address, u.get("ActiveState"))
	}
	return ok("%s: %s", address, u.get("SubState"))
}

const dropInDir = "/etc/systemd/system/thinsnap.service.d"

// lookAtUnitDevices checks that the unit allows the pool's disks: LVM runs in the unit.
func lookAtUnitDevices(ctx context.Context, m *machine) finding {
	c := m.config()
	u, err := m.unit()
	if err != nil || !u.exists() {
		return skipped("there is no unit")
	}
	if c.Pool.Mode == config.ModeLoop || c.Pool.Mode == config.ModeExisting && !isLVM(c) {
		return skipped("mode %q needs no disk in the unit", c.Pool.Mode)
	}
	var barred, remedy []string
	disks := m.poolDisks(ctx)
	for _, disk := range disks {
		number, isBlock := m.host.isBlock(disk)
		if !isBlock || m.host.allows(u, number) { // a missing disk is another check's
			continue
		}
		barred = append(barred, disk)
		remedy = append(remedy, m.allowing(disk)...)
	}
	if len(barred) > 0 {
		return problem("the unit bars LVM from "+strings.Join(barred, ", "),
			append(remedy, "systemctl daemon-reload", "systemctl restart thinsnap")...)
	}
	return ok("the unit allows %s", strings.Join(disks, ", "))
}

// allows reports whether a unit may read and write a block device (systemd.resource-control(5)).
func (h host) allows(u unitState, number uint64) bool {
	policy, allowed := u.get("DevicePolicy"), u["DeviceAllow"]
	if policy == "auto" && len(allowed) == 0 {
		return true
	}
	for _, line := range allowed {
		spec, access, _ := strings.Cut(line, " ")
		if !strings.Contains(access, "r") || !strings.Contains(access, "w") {
			continue
		}
		if class, isClass := strings.CutPrefix(spec, "block-"); isClass {
			if h.isClass(class, number) {
				return true
			}
			continue
		}
		if other, isBlock := h.isBlock(spec); isBlock && other == number {
			return true
		}
	}
	return false
}
