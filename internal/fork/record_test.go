package fork

import (
	"encoding/json"
	"strings"
	"testing"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// warm returns the record of a container of ctr.
func warm(spec string) *containersapi.Container {
	return &containersapi.Container{
		ID: "warm", Image: "docker.io/library/python:3", Snapshotter: "thinsnap", SnapshotKey: "warm-disk", Sandbox: "box",
		Runtime: &containersapi.Container_Runtime{Name: "io.containerd.kata.v2", Options: &anypb.Any{TypeUrl: "options", Value: []byte{1}}},
		Spec:    &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Spec", Value: []byte(spec)},
		Labels: map[string]string{
			"colour": "green", "io.containerd.image.config.stop-signal": "SIGTERM",
			"containerd.io/restart.status": "running", "containerd.io/restart.loguri": "file:///var/log/warm",
		},
		Extensions: map[string]*anypb.Any{"ctr.cni-containerd.metadata": {TypeUrl: "cni"}, "other": {TypeUrl: "other"}},
		CreatedAt:  timestamppb.Now(), UpdatedAt: timestamppb.Now(),
	}
}

func TestCopyRecord(t *testing.T) {
	source := warm(`{"ociVersion": "1.2.0", "hostname": "host"}`)
	before := proto.CloneOf(source)
	got, err := copyRecord(source, "new")
	require.NoError(t, err)
	require.True(t, proto.Equal(before, source), "the source's record is unchanged")
	want := proto.CloneOf(source)
	want.ID, want.SnapshotKey, want.CreatedAt, want.UpdatedAt = "new", "new", nil, nil
	want.Labels = map[string]string{"colour": "green", "io.containerd.image.config.stop-signal": "SIGTERM"}
	delete(want.Extensions, "ctr.cni-containerd.metadata")
	got.Spec.Value, want.Spec.Value = nil, nil
	require.True(t, proto.Equal(want, got), "%v", got)
}

// Only members that name the source are changed.
func TestCopySpec(t *testing.T) {
	for _, test := range []struct{ name, source, want string }{
		{
			"all that ctr names",
			`{"hostname": "warm", "process": {"args": ["warm"], "env": ["A=warm", "HOSTNAME=warm"], "cwd": "/warm"},
				"linux": {"cgroupsPath": "/default/warm", "resources": {"memory": {"limit": 9223372036854771712}}}}`,
			`{"hostname": "new", "process": {"args": ["warm"], "env": ["A=warm", "HOSTNAME=new"], "cwd": "/warm"},
				"linux": {"cgroupsPath": "/default/new", "resources": {"memory": {"limit": 9223372036854771712}}}}`,
		},
		{
			"a host name of the operator's",
			`{"hostname": "host", "process": {"env": ["HOSTNAME=host"]}}`,
			`{"hostname": "host", "process": {"env": ["HOSTNAME=host"]}}`,
		},
		{"a host name without a process", `{"hostname": "warm"}`, `{"hostname": "new"}`},
		{
			"a cgroup of systemd's",
			`{"linux": {"cgroupsPath": "system.slice:ctr:warm"}}`, `{"linux": {"cgroupsPath": "system.slice:ctr:new"}}`,
		},
		{"a cgroup of the operator's", `{"linux": {"cgroupsPath": "/limits/a"}}`, `{"linux": {"cgroupsPath": "/limits/new"}}`},
		{"a cgroup with colons", `{"linux": {"cgroupsPath": "/a:b:c"}}`, `{"linux": {"cgroupsPath": "/new"}}`},
		{"a cgroup of the runtime's choice", `{"linux": {"namespaces": []}}`, `{"linux": {"namespaces": []}}`},
		{
			"what a later version has",
			`{"linux": {"cgroupsPath": "/a", "later": {"x": 1.50}}, "later": [1e400]}`,
			`{"linux": {"cgroupsPath": "/new", "later": {"x": 1.50}}, "later": [1e400]}`,
		},
		{
			"hooks for any container",
			`{"hooks": {"prestart": [{"path": "/h", "args": ["h", "--mode=warmer", "warm-up", "/opt/xwarm/y"]}]}}`,
			`{"hooks": {"prestart": [{"path": "/h", "args": ["h", "--mode=warmer", "warm-up", "/opt/xwarm/y"]}]}}`,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := copySpec(warm(test.source), "new")
			require.NoError(t, err)
			require.Equal(t, compact(t, test.want), compact(t, string(got)))
		})
	}
}

// compact returns JSON without blanks, members sorted. Numbers keep their form.
func compact(t *testing.T, text string) string {
	t.Helper()
	var value any
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()
	require.NoError(t, decoder.Decode(&value))
	encoded, err := json.Marshal(value)
	require.NoError(t, err)
	return string(encoded)
}

// Records that would use the source's state are not copied; the error names the alternative.
func TestRefusedRecords(t *testing.T) {
	with := func(change func(*containersapi.Container)) *containersapi.Container {
		c := warm(`{"linux": {"cgroupsPath": "/a"}}`)
		change(c)
		return c
	}
	hook := func(kind, hook string) *containersapi.Container {
		return warm(`{"hooks": {"` + kind + `": [{"path": "/usr/bin/net", ` + hook + `}]}}`)
	}
	for _, test := range []struct {
		source *containersapi.Container
		class  error
		want   string
	}{
		{with(func(c *containersapi.Container) { c.Labels["nerdctl/name"] = "web" }), errdefs.ErrFailedPrecondition, "belongs to nerdctl"},
		{with(func(c *containersapi.Container) { c.Labels["com.docker/engine.bundle.path"] = "" }), errdefs.ErrFailedPrecondition, "belongs to Docker"},
		{with(func(c *containersapi.Container) { c.Labels["io.cri-containerd.kind"] = "container" }), errdefs.ErrFailedPrecondition, "belongs to the CRI"},
		{
			with(func(c *containersapi.Container) { c.Extensions["io.cri-containerd.sandbox.metadata"] = &anypb.Any{} }),
			errdefs.ErrFailedPrecondition, `"thinsnap fork --token warm"`,
		},
		{hook("createRuntime", `"args": ["net", "--of", "warm"]`), errdefs.ErrFailedPrecondition, `hook /usr/bin/net names the container ("warm")`},
		{hook("prestart", `"args": ["net", "/run/warm/ns"]`), errdefs.ErrFailedPrecondition, `("/run/warm/ns")`},
		{hook("poststop", `"env": ["ID=warm"]`), errdefs.ErrFailedPrecondition, `("ID=warm")`},
		{with(func(c *containersapi.Container) { c.Spec = nil }), errdefs.ErrNotImplemented, `it has the type ""`},
		{with(func(c *containersapi.Container) { c.Spec.TypeUrl = "windows" }), errdefs.ErrNotImplemented, `it has the type "windows"`},
		{warm(`{"linux": {"cgroupsPath": 1}}`), errdefs.ErrInvalidArgument, "cannot unmarshal"},
		{warm(`[]`), errdefs.ErrInvalidArgument, "cannot unmarshal"},
		{warm(``), errdefs.ErrInvalidArgument, "unexpected end"},
	} {
		_, err := copyRecord(test.source, "new")
		require.ErrorIs(t, err, test.class)
		require.ErrorContains(t, err, test.want)
	}
}

func TestNewestKey(t *testing.T) {
	keys := []string{"default/9/web", "default/10/web", "other/11/web", "default/12/web2", "default/13/a/web", "default/x/web", "web"}
	each := func(yield func(string) bool) {
		for _, key := range keys {
			if !yield(key) {
				return
			}
		}
	}
	require.Equal(t, "default/10/web", NewestKey(each, "default", "web"))
	require.Equal(t, "default/13/a/web", NewestKey(each, "default", "a/web"))
	require.Empty(t, NewestKey(each, "default", "none"))
}
