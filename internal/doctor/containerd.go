package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	introspection "github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/pelletier/go-toml/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/thinsnap/thinsnap/internal/setup"
)

type containerdState struct {
	setup.Containerd
	release setup.Release
	config  containerdConfig
	// err is the reason why the release or the configuration is unknown.
	err error
	// loaded are the plugins of the running containerd. loadErr is the reason why they are unknown.
	loaded  []*introspection.Plugin
	loadErr error
}

// containerdConfig is containerd's effective configuration, with imports and defaults.
type containerdConfig struct {
	Proxies map[string]proxy `toml:"proxy_plugins"`
	Plugins map[string]any   `toml:"plugins"`
}

// proxy is a section of proxy_plugins.
type proxy struct {
	Type     string            `toml:"type"`
	Address  string            `toml:"address"`
	Platform string            `toml:"platform"`
	Exports  map[string]string `toml:"exports"`
}

// findContainerds finds the containerds, and reads their configurations and plugins in parallel.
func findContainerds(ctx context.Context) ([]containerdState, error) {
	all, err := setup.Find()
	if err != nil {
		return nil, err
	}
	states := make([]containerdState, len(all))
	var wait sync.WaitGroup
	for i, c := range all {
		s := &states[i]
		s.Containerd = c
		wait.Go(func() {
			if s.release, s.err = c.Release(ctx); s.err == nil {
				s.config, s.err = dump(ctx, c)
			}
		})
		if c.PID != 0 {
			wait.Go(func() { s.loaded, s.loadErr = loadedPlugins(ctx, c.Address) })
		}
	}
	wait.Wait()
	return states, nil
}

// dump runs containerd to print its configuration.
func dump(ctx context.Context, c setup.Containerd) (containerdConfig, error) {
	d, err := c.Dump(ctx, c.Config)
	if err != nil {
		return containerdConfig{}, err
	}
	text, err := toml.Marshal(map[string]any{"proxy_plugins": d.Section("proxy_plugins"), "plugins": d.Plugins})
	if err != nil {
		return containerdConfig{}, err
	}
	return parseContainerd(text)
}

// parseContainerd reads the output of `containerd config dump`.
func parseContainerd(text []byte) (c containerdConfig, err error) {
	if err := toml.Unmarshal(text, &c); err != nil {
		return c, fmt.Errorf("read containerd's configuration: %w", err)
	}
	return c, nil
}

// answerTime limits the time in which containerd has to list its plugins.
const answerTime = 5 * time.Second

// loadedPlugins asks a running containerd for its snapshotters. If no process listens, it fails at once.
func loadedPlugins(ctx context.Context, address string) (_ []*introspection.Plugin, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	conn, err := grpc.NewClient("passthrough:///containerd", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", address)
		}))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	answer, err := introspection.NewIntrospectionClient(conn).Plugins(ctx, &introspection.PluginsRequest{
		Filters: []string{"type==" + snapshotterType},
	})
	return answer.GetPlugins(), err
}

const snapshotterType = "io.containerd.snapshotter.v1"

// proxies returns the names of the proxy plugins at one of the addresses, sorted.
func (c containerdConfig) proxies(addresses []string) []string {
	var names []string
	for name, p := range c.Proxies {
		if slices.Contains(addresses, p.Address) && p.Type != "diff" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// values returns the values of all keys with the given name in the sections of plugins, with the
// keys of the tables around them.
func (c containerdConfig) values(name string) (found []setting) {
	var walk func(path []string, value any)
	walk = func(path []string, value any) {
		switch v := value.(type) {
		case map[string]any:
			for key, inner := range v {
				if strings.EqualFold(key, name) {
					found = append(found, setting{path, inner})
				}
				walk(append(slices.Clone(path), key), inner)
			}
		case []any:
			for _, inner := range v {
				walk(path, inner)
			}
		}
	}
	walk(nil, c.Plugins)
	slices.SortFunc(found, func(a, b setting) int { return slices.Compare(a.table, b.table) })
	return found
}

// setting is a value with the table around it.
type setting struct {
	table []string
	value any
}

// label names a containerd in a finding.
func (s containerdState) label() string {
	if s.Unit != "" {
		return strings.TrimSuffix(s.Unit, ".service")
	}
	return string(s.Kind)
}

// restart is the command that makes containerd read its configuration.
func (s containerdState) restart() string {
	if s.Unit != "" {
		return "systemctl restart " + s.Unit
	}
	return "# restart " + s.label()
}

// selinux reports whether the CRI plugin labels file systems.
func (s containerdState) selinux() bool {
	return slices.ContainsFunc(s.config.values("enable_selinux"), func(v setting) bool { return v.value == true })
}

func (m *machine) addresses() []string {
	c := m.config()
	var all []string
	for _, client := range c.AllClients() {
		all = append(all, client.Address)
	}
	return all
}

// ours returns the containerds that have thinsnap as a proxy plugin.
func (m *machine) ours() []containerdState {
	all, _ := m.containerds()
	return slices.DeleteFunc(slices.Clone(all), func(s containerdState) bool {
		return len(s.config.proxies(m.addresses())) == 0
	})
}

// each calls look for each proxy plugin of the containerds that ours returns, and merges the
// findings. The worst status counts.
func (m *machine) each(look func(s containerdState, name string) finding) finding {
	all := m.ours()
	if len(all) == 0 {
		return skipped("no containerd has thinsnap in its configuration")
	}
	order := []Status{Skipped, OK, Warning, Problem}
	merged := finding{status: Skipped}
	var lines []string
	for _, s := range all {
		for _, name := range s.config.proxies(m.addresses()) {
			f := look(s, name)
			lines = append(lines, fmt.Sprintf("%s: %s", s.label(), f.seen))
			merged.remedy = append(merged.remedy, f.remedy...)
			if slices.Index(order, f.status) > slices.Index(order, merged.status) {
				merged.status = f.status
			}
		}
	}
	merged.seen = strings.Join(lines, "\n")
	return merged
}

// lookAtContainerd looks for a running containerd that is new enough.
func lookAtContainerd(_ context.Context, m *machine) finding {
	all, err := m.containerds()
	if err != nil {
		return problem("look for containerd: "+err.Error(), "systemctl status containerd")
	}
	if len(all) == 0 {
		return problem("there is no containerd: no process, no unit and no program", m.host.install(pkg{"containerd",
			"containerd"}))
	}
	var lines, remedy []string
	runs := false
	for _, s := range all {
		state := "does not run"
		if s.PID != 0 {
			runs, state = true, fmt.Sprintf("process %d", s.PID)
		}
		switch {
		case s.err != nil && s.PID == 0 && len(all) > 1:
			lines = append(lines, fmt.Sprintf("%s: %s, and cannot: %v", s.label(), state, s.err)) // usually a remnant
			continue
		case s.err != nil:
			lines = append(lines, fmt.Sprintf("%s: %s: %v", s.label(), state, s.err))
			remedy = append(remedy, s.Executable+" --config "+quote(s.Config)+" config dump")
			continue
		case !s.release.AtLeast(1, 6):
			lines = append(lines, fmt.Sprintf("%s %v is older than 1.6: %s", s.label(), s.release, state))
			remedy = append(remedy, "# install containerd 1.6 or newer")
			continue
		}
		lines = append(lines, fmt.Sprintf("%s %v, %s: %s", s.label(), s.release, s.Config, state))
	}
	if !runs {
		remedy = append(remedy, "systemctl enable --now containerd")
	}
	if len(remedy) > 0 {
		return problem(strings.Join(lines, "\n"), remedy...)
	}
	return ok("%s", strings.Join(lines, "\n"))
}

// lookAtProxy looks for thinsnap in containerd's configuration.
func lookAtProxy(_ context.Context, m *machine) finding {
	all, err := m.containerds()
	if err != nil || len(all) == 0 {
		return skipped("there is no containerd")
	}
	if len(m.ours()) > 0 {
		return m.each(func(s containerdState, name string) finding {
			return s.proxyFinding(name, m.config().Root, m.setup(s))
		})
	}
	for _, s := range all {
		if p, has := s.config.Proxies["thinsnap"]; has {
			return problem(fmt.Sprintf("%s: proxy_plugins.thinsnap in %s has the address %q, but thinsnap's is %s", s.label(),
				s.Config,
				p.Address, m.config().Address), "# set address in "+s.Config+"; then:", s.restart())
		}
	}
	first := all[max(0, slices.IndexFunc(all, func(s containerdState) bool { return s.Kind == setup.System }))]
	return problem(fmt.Sprintf("%s: %s has no thinsnap in proxy_plugins", first.label(), first.Config), m.setup(first),
		first.restart())
}

func (s containerdState) proxyFinding(name, root, setUp string) finding {
	p := s.config.Proxies[name]
	remedy := []string{setUp, s.restart()}
	platform := "linux/" + runtime.GOARCH
	switch {
	case p.Type != "snapshot":
		return problem(fmt.Sprintf("type of proxy_plugins.%s is %q, not \"snapshot\"", name, p.Type), remedy...)
	case s.release.AtLeast(2, 0) && p.Platform != "" && p.Platform != platform && !strings.HasPrefix(p.Platform,
		platform+"/"):
		return problem(fmt.Sprintf("platform of proxy_plugins.%s is %q, but this machine is %s", name, p.Platform, platform),
			remedy...)
	case s.release.AtLeast(2, 0) && p.Exports["root"] == "":
		return warning(fmt.Sprintf("proxy_plugins.%s has no exports.root, so the kubelet does not see thinsnap's disk",
			name), remedy...)
	case p.Exports["root"] != "" && p.Exports["root"] != root:
		return warning(fmt.Sprintf("exports.root of proxy_plugins.%s is %q, but thinsnap's root is %s", name,
			p.Exports["root"], root),
			remedy...)
	}
	return ok("proxy_plugins.%s in %s", name, s.Config)
}

// lookAtUnpacking looks for thinsnap in unpack_config: the transfer service unpacks images only for
// the snapshotters in it.
func lookAtUnpacking(_ context.Context, m *machine) finding {
	return m.each(func(s containerdState, name string) finding {
		if !s.release.AtLeast(1, 7) {
			return ok("%v has no transfer service", s.release)
		}
		var has []string
		for _, list := range s.config.values("unpack_config") {
			entries, _ := list.value.([]any)
			for _, e := range entries {
				entry, _ := e.(map[string]any)
				snapshotter, _ := entry["snapshotter"].(string)
				platform, _ := entry["platform"].(string)
				if snapshotter == name && (platform == "" || strings.HasPrefix(platform, "linux/"+runtime.GOARCH)) {
					return ok("unpack_config has it")
				}
				has = append(has, fmt.Sprintf("%s for %s", snapshotter, platform))
			}
		}
		seen := fmt.Sprintf("unpack_config has only [%s]: images are pulled, but not unpacked for %s", strings.Join(has,
			", "), name)
		if !s.release.AtLeast(2, 0) {
			return warning(seen+" by the transfer service", m.setup(s), s.restart())
		}
		return problem(seen, m.setup(s), s.restart())
	})
}

// lookAtRuntimes lists the pods that use thinsnap, and reports a configured snapshotter that is not
// loaded.
func lookAtRuntimes(_ context.Context, m *machine) finding {
	return m.each(func(s containerdState, name string) finding {
		var uses []string
		for _, v := range s.config.values("snapshotter") {
			at := strings.Join(v.table, ".")
			if strings.HasSuffix(at, ".unpack_config") {
				continue
			}
			other, _ := v.value.(string)
			if _, isProxy := s.config.Proxies[other]; other != "" && !isProxy && s.loaded != nil && !s.has(other) {
				return problem(fmt.Sprintf("the snapshotter of %s is %q, which containerd has not loaded", at, other),
					"ctr --address "+quote(s.Address)+" plugins ls", "# correct it in "+s.Config+"; then:", s.restart())
			}
			if other == name {
				uses = append(uses, at)
			}
		}
		if len(uses) == 0 {
			return ok("no runtime has it by itself: use `ctr run --snapshotter %s` or `nerdctl --snapshotter %s`", name, name)
		}
		return ok("%s is the snapshotter of %s", name, strings.Join(uses, ", "))
	})
}

// has reports whether containerd has loaded a snapshotter without an error.
func (s containerdState) has(name string) bool {
	return slices.ContainsFunc(s.loaded, func(p *introspection.Plugin) bool {
		return p.GetID() == name &&
			p.GetInitErr() == nil
	})
}

// lookAtConnection checks that the running containerd has loaded thinsnap.
func lookAtConnection(_ context.Context, m *machine) finding {
	return m.each(func(s containerdState, name string) finding {
		switch {
		case s.PID == 0:
			return problem("it does not run", "systemctl enable --now "+s.label())
		case s.loadErr != nil:
			return problem(fmt.Sprintf("it does not list its plugins on %s: %v", s.Address, s.loadErr), s.restart())
		}
		for _, p := range s.loaded {
			switch {
			case p.GetID() != name:
			case p.GetInitErr() != nil:
				return problem(fmt.Sprintf("it cannot use the plugin %s: %s", name, p.GetInitErr().GetMessage()), s.restart(),
					"ctr --address "+quote(s.Address)+" plugins ls")
			default:
				return ok("it has loaded the plugin %s", name)
			}
		}
		return problem(fmt.Sprintf("it has not loaded the plugin %s: it was started before %s had it", name, s.Config),
			s.restart())
	})
}
