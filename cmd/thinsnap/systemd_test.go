package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// unit returns the systemd unit with an existing program.
func unit(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("systemd/thinsnap.service")
	require.NoError(t, err)
	require.Contains(t, string(text), "ExecStart=/usr/local/bin/thinsnap serve\n")
	return strings.Replace(string(text), "/usr/local/bin/thinsnap serve", "/bin/true", 1)
}

// TestUnitSharesTheMountNameSpace: with any of these options thinsnap would have a private mount
// namespace, and containerd would not see its mounts (exec_needs_mount_namespace in systemd's
// src/core/execute.c).
func TestUnitSharesTheMountNameSpace(t *testing.T) {
	private := regexp.MustCompile(`^(Private(Devices|Mounts|Tmp)|Protect(ControlGroups|Home|Kernel\w+|Proc|System)|ProcSubset|` +
		`\w+Paths|TemporaryFileSystem|MountFlags|MountImages|Root\w+|ExtensionImages|DynamicUser|LogNamespace)=`)
	for line := range strings.Lines(unit(t)) {
		require.NotRegexp(t, private, line)
	}
}

// TestUnitIsConfined: the device policy has nodes and classes, not all devices of a kind. Memory is
// limited, because the kernel would otherwise kill other processes first. Only this machine can
// reach the daemon.
func TestUnitIsConfined(t *testing.T) {
	settings := map[string][]string{}
	for line := range strings.Lines(unit(t)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(key, "#") {
			settings[key] = append(settings[key], value)
		}
	}
	require.Equal(t, []string{"closed"}, settings["DevicePolicy"])
	require.Equal(t, []string{
		"block-device-mapper rw", "block-loop rw", "/dev/mapper/control rw", "/dev/loop-control rw",
	}, settings["DeviceAllow"])
	require.Equal(t, []string{"-999"}, settings["OOMScoreAdjust"])
	require.NotEmpty(t, settings["MemoryHigh"])
	require.NotEmpty(t, settings["MemoryMax"])
	require.Equal(t, []string{"0"}, settings["LimitCORE"])
	require.Equal(t, []string{"any"}, settings["IPAddressDeny"])
	require.Equal(t, []string{"localhost"}, settings["IPAddressAllow"])
}

// TestDropInsAreValid: the drop-ins in the documents, each with the unit.
func TestDropInsAreValid(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	dmtest.RequireInstalled(t, err)
	for doc, option := range map[string]string{"pools": "DeviceAllow=", "operations": "IPAddressAllow="} {
		text, err := os.ReadFile("../../docs/" + doc + ".md")
		require.NoError(t, err)
		found := regexp.MustCompile(`(?m)(?:^    .*\n|^\n)*^    ` + option + `.*\n`).FindString(string(text))
		require.NotEmpty(t, found, doc)
		dropIn := regexp.MustCompile(`(?m)^    `).ReplaceAllString(found, "")
		require.Contains(t, dropIn, "[Service]\n")
		dir := t.TempDir()
		file := filepath.Join(dir, "thinsnap.service")
		require.NoError(t, os.Mkdir(file+".d", 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(file+".d", "disk.conf"), []byte(dropIn), 0o600))
		require.NoError(t, os.WriteFile(file, []byte(unit(t)), 0o600))
		cmd := exec.Command(analyze, "verify", "--man=no", file)
		cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		require.Empty(t, string(out))
	}
}

// TestUnitDoesNotRestartInVain: an error that only an operator can mend does not restart the unit.
func TestUnitDoesNotRestartInVain(t *testing.T) {
	require.Contains(t, unit(t), fmt.Sprintf("\nRestartPreventExitStatus=%d %d\n", exitUsage, exitConfig))
}

// TestUnitsAreValid: the units are valid alone and together, and the socket's file survives a
// restart.
func TestUnitsAreValid(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	dmtest.RequireInstalled(t, err)
	require.Contains(t, unit(t), "\nRuntimeDirectoryPreserve=yes\n")
	socket, err := os.ReadFile("systemd/thinsnap.socket")
	require.NoError(t, err)
	require.Contains(t, string(socket), "\nListenStream="+config.Default().Address+"\nSocketMode=0600\n")
	file := filepath.Join(t.TempDir(), "thinsnap.service")
	require.NoError(t, os.WriteFile(file, []byte(unit(t)), 0o600))
	beside := filepath.Join(filepath.Dir(file), "thinsnap.socket")
	require.NoError(t, os.WriteFile(beside, socket, 0o600))
	out, err := exec.Command(analyze, "verify", "--man=no", file, beside).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Empty(t, string(out))
}

// TestUnitsExposureIsExplained: each item that `systemd-analyze security` reports has a reason
// here. All other settings must stay as strict as they are.
func TestUnitsExposureIsExplained(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	dmtest.RequireInstalled(t, err)
	const (
		mounts = "it would be a mount namespace of thinsnap's own, and containerd would not see its mounts"
		root   = "device-mapper, loop devices and mounts need root in the first user namespace"
	)
	explained := map[string]string{
		"CapabilityBoundingSet_CAP_DAC_FOWNER_IPC_OWNER": "CAP_DAC_READ_SEARCH, to trim a file system whose root is closed",
		"CapabilityBoundingSet_CAP_SYS_ADMIN":            "device-mapper, loop devices and mounts",
		"CapabilityBoundingSet_CAP_SYS_NICE_RESOURCE":    "CAP_SYS_RESOURCE, to grow a mounted ext4",
		"DeviceAllow":                           "mapped devices and loop devices are its work",
		"IPAddressDeny":                         "metrics_address, on loopback",
		"PrivateDevices":                        mounts,
		"PrivateMounts":                         mounts,
		"PrivateNetwork":                        "metrics_address, on loopback",
		"PrivateTmp":                            mounts,
		"PrivateUsers":                          root,
		"ProcSubset":                            mounts,
		"ProtectControlGroups":                  mounts,
		"ProtectHome":                           mounts,
		"ProtectKernelLogs":                     mounts,
		"ProtectKernelModules":                  mounts,
		"ProtectKernelTunables":                 mounts,
		"ProtectProc":                           mounts,
		"ProtectSystem":                         mounts,
		"RestrictAddressFamilies_AF_INET_INET6": "metrics_address",
		"RestrictAddressFamilies_AF_UNIX":       "containerd's socket and the operator's",
		"RootDirectoryOrRootImage":              mounts,
		"SystemCallFilter_mount":                "it mounts",
		"SystemCallFilter_privileged":           "a part of @system-service, such as chown for mkfs",
		"SystemCallFilter_resources":            "a part of @system-service, such as sched_setaffinity for Go",
		"UserOrDynamicUser":                     root,
	}
	file := filepath.Join(t.TempDir(), "thinsnap.service")
	require.NoError(t, os.WriteFile(file, []byte(unit(t)), 0o600))
	out, err := exec.Command(analyze, "security", "--offline=yes", "--json=short", file).Output()
	require.NoError(t, err)
	var settings []struct {
		Field    string `json:"json_field"`
		Exposure string `json:"exposure"`
	}
	require.NoError(t, json.Unmarshal(out, &settings))
	require.Greater(t, len(settings), 60)
	for _, s := range settings {
		if s.Exposure != "" && s.Exposure != "0.0" {
			require.Contains(t, explained, s.Field)
		}
	}
	require.NoError(t, exec.Command(analyze, "security", "--offline=yes", "--threshold=42", file).Run(), "4.2 of 10")
}

// TestTrimUnitsAreValid: the timer is optional, for an operator to enable.
func TestTrimUnitsAreValid(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	dmtest.RequireInstalled(t, err)
	dir := t.TempDir()
	service, err := os.ReadFile("systemd/thinsnap-trim.service")
	require.NoError(t, err)
	require.Contains(t, string(service), "\nExecStart=/usr/local/bin/thinsnap pool trim\n")
	timer, err := os.ReadFile("systemd/thinsnap-trim.timer")
	require.NoError(t, err)
	for name, text := range map[string]string{
		"thinsnap.service": unit(t), "thinsnap-trim.timer": string(timer),
		"thinsnap-trim.service": strings.Replace(string(service), "/usr/local/bin/thinsnap", "/bin/true", 1),
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	cmd := exec.Command(analyze, "verify", "--man=no", filepath.Join(dir, "thinsnap-trim.service"), filepath.Join(dir, "thinsnap-trim.timer"))
	cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Empty(t, string(out))
	require.NoError(t, exec.Command(analyze, "security", "--offline=yes", "--threshold=15", filepath.Join(dir, "thinsnap-trim.service")).Run())
}
