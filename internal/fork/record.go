package fork

import (
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
)

// specType ends the type URL of a runtime specification in JSON (containerd's typeurl).
const specType = "opencontainers/runtime-spec/1/Spec"

// restartLabels are the labels of containerd's restart monitor. It would start the copy by itself, with the source's
// log.
const restartLabels = "containerd.io/restart."

// networkExtension is ctr's record of a network made by CNI, which "ctr tasks kill" removes. A copy started by "ctr
// tasks start" has none.
const networkExtension = "ctr.cni-containerd.metadata"

// managerOf returns the program that has state of the container outside of the record, or "" for none.
func managerOf(c *containersapi.Container) string {
	for label := range c.GetLabels() {
		switch {
		case strings.HasPrefix(label, "nerdctl/"):
			return "nerdctl"
		case strings.HasPrefix(label, "com.docker/"):
			return "Docker"
		case strings.HasPrefix(label, "io.cri-containerd."):
			return "the CRI"
		}
	}
	for extension := range c.GetExtensions() {
		if strings.HasPrefix(extension, "io.cri-containerd.") {
			return "the CRI"
		}
	}
	return ""
}

// copyRecord returns a copy of a record for a container named id, with the snapshot named id. It returns
// errdefs.ErrFailedPrecondition if the copy would use the source's state.
func copyRecord(source *containersapi.Container, id string) (*containersapi.Container, error) {
	if manager := managerOf(source); manager != "" {
		return nil, fmt.Errorf("container %q belongs to %s, which keeps its log, network and /etc/hosts outside of "+
			"containerd's record, so that a copy of the record would use those of %q: fork its snapshot (\"thinsnap fork KEY "+
			"NEW\"), or give its disk to a new container of ctr (\"thinsnap fork --token %s\"): %w",
			source.GetID(), manager, source.GetID(), source.GetID(), errdefs.ErrFailedPrecondition)
	}
	spec, err := copySpec(source, id)
	if err != nil {
		return nil, fmt.Errorf("copy the specification of container %q: %w", source.GetID(), err)
	}
	record := proto.CloneOf(source)
	record.ID, record.SnapshotKey = id, id
	record.Spec.Value = spec
	record.CreatedAt, record.UpdatedAt = nil, nil
	delete(record.Extensions, networkExtension)
	maps.DeleteFunc(record.Labels, func(label, _ string) bool { return strings.HasPrefix(label, restartLabels) })
	return record, nil
}

// copySpec returns a container's runtime specification in JSON, with the name id in its cgroup path, host name and
// HOSTNAME. All other members stay unchanged, also unknown ones.
func copySpec(source *containersapi.Container, id string) ([]byte, error) {
	if kind := source.GetSpec().GetTypeUrl(); !strings.HasSuffix(kind, specType) {
		return nil, fmt.Errorf("it has the type %q, and only %s can be copied: %w", kind, specType, errdefs.ErrNotImplemented)
	}
	var known specs.Spec
	spec := make(object)
	for _, into := range []any{&known, &spec} {
		if err := json.Unmarshal(source.GetSpec().GetValue(), into); err != nil {
			return nil, fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
		}
	}
	if err := refuseHooks(spec["hooks"], source.GetID()); err != nil {
		return nil, err
	}
	if known.Linux != nil && known.Linux.CgroupsPath != "" {
		if err := spec.change("linux", "cgroupsPath", cgroupsPath(known.Linux.CgroupsPath, id)); err != nil {
			return nil, err
		}
	}
	if known.Hostname == source.GetID() {
		if err := spec.set("hostname", id); err != nil {
			return nil, err
		}
		if known.Process != nil {
			env := slices.Clone(known.Process.Env)
			for i, variable := range env {
				if variable == "HOSTNAME="+known.Hostname {
					env[i] = "HOSTNAME=" + id
				}
			}
			if err := spec.change("process", "env", env); err != nil {
				return nil, err
			}
		}
	}
	return json.Marshal(spec)
}

// object is a JSON object whose members are not decoded.
type object map[string]json.RawMessage

func (o object) set(name string, value any) error {
	text, err := json.Marshal(value)
	if err == nil {
		o[name] = text
	}
	return err
}

// change sets a member of a member.
func (o object) change(outer, name string, value any) error {
	inner := make(object)
	if err := json.Unmarshal(o[outer], &inner); err != nil {
		return err
	}
	if err := inner.set(name, value); err != nil {
		return err
	}
	return o.set(outer, inner)
}

// cgroupsPath returns the path of a cgroup beside another one, because containers cannot share one. It is /PARENT/NAME,
// or SLICE:PREFIX:NAME where systemd makes cgroups (runc's docs/systemd.md).
func cgroupsPath(of, id string) string {
	if parts := strings.Split(of, ":"); len(parts) == 3 && !strings.HasPrefix(of, "/") {
		parts[2] = id
		return strings.Join(parts, ":")
	}
	return path.Join(path.Dir(of), id)
}

// refuseHooks fails if a hook names the source, and so would act on it instead of the copy. hooks is a JSON object of
// lists, by kind.
func refuseHooks(hooks json.RawMessage, source string) error {
	if hooks == nil {
		return nil
	}
	var kinds map[string][]specs.Hook
	if err := json.Unmarshal(hooks, &kinds); err != nil {
		return fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
	}
	for _, hook := range slices.Concat(slices.Collect(maps.Values(kinds))...) {
		for _, text := range slices.Concat(hook.Args, hook.Env) {
			if slices.Contains(strings.FieldsFunc(text, betweenNames), source) {
				return fmt.Errorf("its hook %s names the container (%q), and would act on %q when the copy runs: give its "+
					"disk to a new container (\"thinsnap fork --token %s\"): %w", hook.Path, text, source, source,
					errdefs.ErrFailedPrecondition)
			}
		}
	}
	return nil
}

// betweenNames reports whether a rune cannot be in a container's name.
func betweenNames(r rune) bool {
	return !strings.ContainsRune("-._", r) && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
}
