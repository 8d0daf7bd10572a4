// Package selinux tests mounts with an SELinux context, on Debian's kernel with a small policy.
package selinux

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/integration/vm"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/daemon"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/dmtest/fsck"
)

// inGuest is the variable with the path of the policy in the guest.
const inGuest = "THINSNAP_TEST_SELINUX_POLICY"

const (
	ofImages = "system_u:object_r:container_file_t:s0"
	// containerd gives each container its own context: process.mountLabel in its specification.
	ofOne = "system_u:object_r:container_file_t:s0:c0,c1"
)

// TestSELinux boots a guest with SELinux, and runs itself there.
func TestSELinux(t *testing.T) {
	if policy := os.Getenv(inGuest); policy != "" {
		loadPolicy(t, policy)
		t.Run("mount_options", func(t *testing.T) { testContext(t, "ext4", []string{"context=" + ofImages}, nil) })
		t.Run("commas", func(t *testing.T) { testContext(t, "xfs", []string{`context="` + ofOne + `"`}, nil) })
		t.Run("containerd", func(t *testing.T) { testContext(t, "ext4", nil, []string{`context="` + ofOne + `"`}) })
		return
	}
	if testing.Short() {
		t.Skip("boots guests: -short")
	}
	dmtest.RequireInstalled(t, vm.Installed())
	dir := t.TempDir()
	policy := filepath.Join(dir, "policy")
	_, err := exec.LookPath("secilc")
	dmtest.RequireInstalled(t, err)
	out, err := exec.Command("secilc", "-c", "31", "-o", policy, "-f", os.DevNull, "testdata/policy.cil").CombinedOutput()
	require.NoError(t, err, "%s", out)
	machine, err := vm.Boot(t.Context(), vm.Config{KernelOptions: "security=selinux"})
	require.NoError(t, err)
	defer machine.Kill()
	program, err := os.Executable()
	require.NoError(t, err)
	var log bytes.Buffer
	err = machine.Run(t.Context(), vm.Command{
		Args: []string{program, "-test.v", "-test.run=^TestSELinux$"},
		Env:  append(os.Environ(), inGuest+"="+policy, "THINSNAP_KERNEL_TESTS=1"), Stdout: &log, Stderr: &log,
	})
	require.NoError(t, err, "%s\n%s", &log, machine.Console())
	require.Contains(t, log.String(), "--- PASS: TestSELinux/containerd")
}

func loadPolicy(t *testing.T, file string) {
	t.Helper()
	require.NoError(t, unix.Mount("selinuxfs", "/sys/fs/selinux", "selinuxfs", 0, ""))
	policy, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile("/sys/fs/selinux/load", policy, 0o600))
}

// testContext tests everything that mounts an already mounted file system: options are those of the configuration,
// added those of the client.
func testContext(t *testing.T, typ string, options, added []string) {
	t.Helper()
	dmtest.NoLeaks(t)
	ctx := t.Context()
	c := config.Default()
	c.Root = filepath.Join(t.TempDir(), "root")
	c.Pool.Name = "selinux"
	c.Pool.Loop.DataSize = 4 << 30
	c.Filesystem.Type, c.Filesystem.BaseSize = typ, 512<<20
	c.Filesystem.MountOptions = options
	d, err := daemon.Open(ctx, c)
	require.NoError(t, err)
	defer func() { require.NoError(t, errors.Join(fsck.Root(ctx, c.Root), daemon.DestroyPool(ctx, c))) }()
	defer func() { require.NoError(t, d.Close()) }()
	sn := d.Snapshotter()
	mounts, err := sn.Prepare(ctx, "box", "")
	require.NoError(t, err)
	dir := t.TempDir()
	if len(options) > 0 {
		both := mounts[0]
		both.Options = append([]string{"context=system_u:object_r:kernel_t:s0"}, both.Options...)
		require.ErrorIs(t, both.Mount(dir), unix.EINVAL, "the kernel takes one context")
	}
	mounts[0].Options = append(mounts[0].Options, added...)
	require.NoError(t, mount.All(mounts, dir))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), []byte("x"), 0o600))
	want := label(t, filepath.Join(dir, "file"))

	again, err := sn.Mounts(ctx, "box")
	require.NoError(t, err)
	require.Equal(t, "bind", again[0].Type)
	again[0].Options = append(again[0].Options, added...)
	require.NoError(t, mount.WithReadonlyTempMount(ctx, again, func(dir string) error {
		require.Equal(t, want, label(t, filepath.Join(dir, "file")))
		return nil
	}))
	_, err = sn.Trim(ctx, "box")
	require.NoError(t, err)
	require.NoError(t, sn.Commit(ctx, "layer", "box"), "it is mounted")
	require.NoError(t, mount.UnmountAll(dir, 0))
	for _, key := range []string{"view", "another view"} {
		view, err := sn.View(ctx, key, "layer")
		require.NoError(t, err)
		view[0].Options = append(view[0].Options, added...)
		dir := t.TempDir()
		require.NoError(t, mount.All(view, dir))
		defer func() { require.NoError(t, unix.Unmount(dir, 0)) }()
		require.Equal(t, want, label(t, filepath.Join(dir, "file")))
	}
	require.Contains(t, append(options, added...)[0], want)
}

func label(t *testing.T, path string) string {
	t.Helper()
	context := make([]byte, 256)
	n, err := unix.Lgetxattr(path, "security.selinux", context)
	require.NoError(t, err)
	return string(bytes.TrimRight(context[:n], "\x00"))
}
