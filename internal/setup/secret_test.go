package setup

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/setup/journal"
)

// withSecrets has each key of containerd 1.6 to 2.x that can be secret, in each form of TOML. Each
// secret contains "hidden".
const withSecrets = `version = 2
# password = "hidden"
[plugins."io.containerd.grpc.v1.cri".registry.configs."r.example:5000".auth]
  username = "user"
  password = "hid\"den" # hidden = no comment
  auth = 'hidden'
  identitytoken = """
hidden
"""
[plugins."io.containerd.grpc.v1.cri".registry.configs."r.example:5000".tls]
  key_file = "/etc/key"
  insecure_skip_verify = true
[plugins."io.containerd.grpc.v1.cri".registry.configs]
  "s.example" = { auth = { username = "user", password = "hidden" }, tls = { ca_file = "/etc/ca" } }
[plugins."io.containerd.grpc.v1.cri".registry.headers]
  X-Meta = ["hidden",
    "hidden"]
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]
  endpoint = ["https://user:hidden@mirror.example/v2"]
[stream_processors."x"]
  env = ["KEY=hidden"]
  "auth-token" = "hidden"
  enable_auth = true
  accepts = ["application/vnd.oci.image"]
`

func TestMasked(t *testing.T) {
	for text, want := range map[string]string{
		withSecrets: "",
		"{{ template \"base\" . }}\n" + withSecrets: "",
		"password = [\"a]hidden\", \"hidden\"]\n":   `password = "***"` + "\n",
		`{"proxies": {"http-proxy": "http://u:hidden@p"}, "log-opts": {"splunk-token": "hidden"}, "debug": true}`: `{"proxies": ` +
			`{"http-proxy": "http://***@p"}, "log-opts": {"splunk-token": "***"}, "debug": true}`,
		`failed to load TOML: (3, 1): password = "hidden" auth = 'hidden'`: `failed to load TOML: (3, 1): password = "***" auth = "***"`,
		`msg="row 3: identitytoken = \"hidden\" x"`:                        `msg="row 3: identitytoken = "***" x"`,
		"endpoint = \"https://r.example\"\ntoken_file = \"/a\"\n":          "endpoint = \"https://r.example\"\ntoken_file = \"/a\"\n",
	} {
		got := string(Masked([]byte(text)))
		require.NotContains(t, strings.ReplaceAll(got, "hidden = no comment", ""), "hid", text)
		if want != "" {
			require.Equal(t, want, got)
			continue
		}
		for _, kept := range []string{
			`username = "user"`, `tls = { ca_file = "/etc/ca" }`, `key_file = "/etc/key"`, "skip_verify = true", "enable_auth = true",
			`endpoint = ["https://***@mirror.example/v2"]`, `accepts = ["application/vnd.oci.image"]`, `X-Meta = "***"`,
		} {
			require.Contains(t, got, kept)
		}
	}
}

// TestPatchOfSecrets: a new file, a removed file, and a file in which only a secret changes.
func TestPatchOfSecrets(t *testing.T) {
	const note = "# *** replaces a secret value in the file.\n"
	text := []byte("a = 1\npassword = \"hidden\"\n")
	file := journal.File{Path: "/f", After: text}
	require.Equal(t, "--- /dev/null\t\n+++ /f\t\n@@ -0,0 +1,2 @@\n+a = 1\n+password = \"***\"\n"+note, Patch([]journal.File{file}))
	file.Before, file.After = text, nil
	require.NotContains(t, Patch([]journal.File{file}), "hidden")
	file.After = []byte("a = 1\npassword = \"other\"\n")
	require.Equal(t, "# /f: only secret values change.\n"+note, Patch([]journal.File{file}))
	file.Before, file.After = []byte("a = 1\n"), []byte("a = 2\n")
	require.NotContains(t, Patch([]journal.File{file}), note)
}

// TestSwitchBesideSecrets: patch(1) applies the patch, which has no secrets.
func TestSwitchBesideSecrets(t *testing.T) {
	const runtime = "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.%s]\n  snapshotter = \"devmapper\"\n"
	path := written(t, map[string]string{"config.toml": withSecrets + strings.ReplaceAll(runtime, "%s", "a") +
		"  password = \"hidden\"\n" + strings.ReplaceAll(runtime, "%s", "b") + minimal + "\n[a]\n  token = \"hidden\"\n"})
	d, err := toThinsnap.Forward(path)
	require.NoError(t, err)
	require.NotContains(t, d.Patch, "hid")
	require.Contains(t, d.Patch, "snapshotter = \"thinsnap\"")
	cmd := exec.CommandContext(t.Context(), "patch", "-d", "/", "-p1")
	cmd.Stdin = strings.NewReader(d.Patch)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NotContains(t, string(out), "fuzz")
	require.NotContains(t, string(out), "offset")
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, strings.Count(withSecrets, "hid")+2, strings.Count(string(text), "hid"))
	switched(t, path, "thinsnap")

	path = written(t, map[string]string{"config.toml": minimal +
		"\n[plugins.x]\n  y = { snapshotter = \"devmapper\", password = \"hidden\" }\n"})
	_, err = toThinsnap.Forward(path)
	require.ErrorIs(t, err, errdefs.ErrNotImplemented)
	require.ErrorContains(t, err, "has a secret, which is not printed")
	require.NotContains(t, err.Error(), "hid")
}

// TestComplaintWithoutSecrets: containerd quotes its configuration in error messages.
func TestComplaintWithoutSecrets(t *testing.T) {
	c := Containerd{Executable: filepath.Join(t.TempDir(), "containerd")}
	require.NoError(t, os.WriteFile(c.Executable, []byte("#!/bin/sh\necho 'line 3: password = \"hidden\"' >&2\nexit 3\n"), 0o700))
	_, err := c.Dump(t.Context(), "/none")
	require.ErrorContains(t, err, `exit status 3: line 3: password = "***"`)
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
}
