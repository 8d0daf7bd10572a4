package doctor

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/docker/go-units"

	"github.com/thinsnap/thinsnap/internal/admin"
)

type daemonState struct {
	info admin.Info
	err  error
}

// answers reports whether a daemon runs, even without an open pool.
func (d daemonState) answers() bool { return d.err == nil || errors.Is(d.err, admin.ErrNotOpen) }

func (m *machine) askDaemon(ctx context.Context) daemonState {
	info, err := admin.NewClient(m.config().AdminAddress).Info(ctx)
	return daemonState{info, err}
}

func lookAtDaemon(_ context.Context, m *machine) finding {
	d := m.daemon()
	restart := m.restart()
	switch {
	case errors.Is(d.err, admin.ErrNotOpen):
		return problem(d.err.Error(), journal, "# docs/troubleshooting.md explains the message; then:", restart)
	case errors.Is(d.err, admin.ErrNoDaemon):
		if socket, err := m.socketUnit(); err == nil && socket.listens() {
			return ok("does not run yet: the first call of containerd starts it")
		}
		if !m.host.listens(m.config().Address) {
			return skipped("does not run")
		}
		return problem(d.err.Error()+"; but a process listens on "+m.config().Address, restart)
	case d.err != nil:
		return problem(d.err.Error(), journal, restart)
	}
	is, c := d.info.Daemon, m.config()
	var differs []string
	for _, v := range []struct{ what, runs, want string }{
		{"version", is.Version, m.Version}, {"root", is.Root, c.Root}, {"address", is.Address, c.Address},
	} {
		if v.runs != v.want {
			differs = append(differs, fmt.Sprintf("%s: the daemon has %s, this program or its configuration %s", v.what, v.runs,
				v.want))
		}
	}
	if len(differs) > 0 {
		return warning(strings.Join(differs, "\n"), restart)
	}
	return ok("process %d, version %s", is.PID, is.Version)
}

// restart is the command that restarts the daemon.
func (m *machine) restart() string {
	if u, err := m.unit(); err == nil && u.exists() {
		return "systemctl restart thinsnap"
	}
	return "# start `thinsnap serve` again"
}

// lookAtPool checks the pool of a daemon that has opened it.
func lookAtPool(_ context.Context, m *machine) finding {
	d := m.daemon()
	if d.err != nil {
		return skipped("no daemon has opened it")
	}
	return poolFinding(&d.info.Pool)
}

func poolFinding(p *admin.Pool) finding {
	grow := []string{"thinsnap pool extend --data +10GiB", "# or remove images that are not needed, then:",
		"thinsnap pool trim"}
	switch {
	case p.NeedsCheck:
		return problem(fmt.Sprintf("the pool is %s, and the kernel marked its metadata needs_check after a failed write",
			p.State), repairPool()...)
	case p.State == admin.StateFailed:
		return problem("the pool has failed: the kernel cannot use its metadata", repairPool()...)
	case p.State == admin.StateReadOnly && p.Metadata.Level == admin.LevelShort:
		return problem("the pool is read-only: its metadata is full", "thinsnap pool extend --metadata +1GiB")
	case p.State == admin.StateReadOnly:
		return problem("the pool is read-only: a write to its metadata failed", "dmesg | grep -e device-mapper -e dm-thin",
			"# docs/troubleshooting.md, `pool is read-only`")
	case p.State == admin.StateOutOfDataSpace:
		return problem("the pool is full: writes wait, then fail", grow...)
	case p.Data.Level == admin.LevelShort:
		return problem(fmt.Sprintf("new snapshots are refused: %s of data are available, less than pool.min_free_space",
			size(p.Data.Available)), grow...)
	case p.Metadata.Level == admin.LevelShort:
		return problem(fmt.Sprintf("new snapshots are refused: %s of metadata are available", size(p.Metadata.Available)),
			"thinsnap pool extend --metadata +1GiB")
	case p.Autoextend.Stuck != "":
		return warning("the pool cannot grow although it should: "+p.Autoextend.Stuck, "thinsnap pool status")
	case p.NotAllocated != "":
		return warning("the pool's data may not be on its disk: "+p.NotAllocated, "thinsnap pool status")
	case p.Overpromised > 0:
		return warning(fmt.Sprintf("the pool promises %s more than its disk has free", size(p.Overpromised)),
			"thinsnap pool status")
	case p.Data.Level == admin.LevelLow:
		return warning(fmt.Sprintf("%s of data are available, of %s", size(p.Data.Available),
			size(p.Data.Used+p.Data.Available)), grow...)
	case p.Metadata.Level == admin.LevelLow:
		return warning(fmt.Sprintf("%s of metadata are available, of %s", size(p.Metadata.Available),
			size(p.Metadata.Used+p.Metadata.Available)), "thinsnap pool extend --metadata +1GiB")
	}
	return ok("%s, %s; %s of data available", p.Name, p.State, size(p.Data.Available))
}

// repairPool returns the commands for metadata that the kernel no longer writes.
func repairPool() []string {
	return []string{
		"dmesg | grep -e device-mapper -e dm-thin", "# if a disk failed, mend it first; then:",
		"systemctl stop containerd thinsnap.socket thinsnap", "thinsnap pool check", "thinsnap pool repair --dry-run",
		"thinsnap pool repair", "systemctl start thinsnap containerd",
	}
}

func size(bytes uint64) string { return units.BytesSize(float64(bytes)) }

// lookAtClient checks the daemon's clients. The worst finding counts.
func lookAtClient(_ context.Context, m *machine) finding {
	d := m.daemon()
	if d.err != nil {
		return skipped("no daemon has opened its pool")
	}
	worst := clientFinding(d.info.Client)
	for _, c := range d.info.Clients {
		f := clientFinding(c)
		f.seen = fmt.Sprintf("client %s: %s", c.Name, f.seen)
		if worst.status == Warning || f.status == OK {
			worst.seen += "\n" + f.seen
			worst.remedy = append(worst.remedy, f.remedy...)
			continue
		}
		f.seen = worst.seen + "\n" + f.seen
		worst = f
	}
	return worst
}

func clientFinding(c admin.ClientInfo) finding {
	switch {
	case c.RefusedCalls > 0:
		return warning(fmt.Sprintf("%s of another process were refused; the last was %s", count(int(c.RefusedCalls), "call"),
			c.LastRefused), "thinsnap info", "# each containerd needs a client of its own ([[clients]])")
	case c.Since.IsZero():
		return ok("no containerd has called yet")
	case !c.Alive && !c.Unseen:
		return ok("process %d (%s) has ended; the next call of containerd takes its place", c.PID, c.Program)
	case c.KeptSnapshots > 0:
		return warning(fmt.Sprintf("%s of an earlier client are kept", count(int(c.KeptSnapshots), "snapshot")),
			"thinsnap ls",
			"# if they are not needed: thinsnap client accept [CLIENT]")
	}
	return ok("process %d (%s) as proxy plugin %q", c.PID, c.Program, c.Proxy)
}
