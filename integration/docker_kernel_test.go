package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// docker is a Docker Engine that keeps its images and containers in thinsnap.
type docker struct {
	*testbed
	engine  *harnesstest.Docker
	version string
	differ  admin.Differ // at the last requireLayers
}

// TestDocker runs Docker Engines on thinsnap, with thinsnap's differ. Nothing is left after each.
func TestDocker(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.RequireThorough(t)
	dmtest.NoLeaks(t)
	tools, err := harness.FindTools("..")
	require.NoError(t, err)
	images := harnesstest.StartRegistry(t, tools)
	d := harnesstest.StartThinsnapWith(t, tools, "docker", harness.Options{VerifyDiffs: true})
	proxy := d.Proxy()
	proxy.Differ = "thinsnap-diff"
	b := &testbed{
		Containerd:  harnesstest.StartContainerd(t, tools, tools.Releases[0], proxy),
		snapshotter: harness.ThinsnapName, thinsnap: d, images: images,
	}
	for version, root := range map[string]string{"28": tools.Docker, "26": tools.Docker26} {
		t.Run(version, func(t *testing.T) {
			harnesstest.Cell(t, "Docker Engine", filepath.Join(root, "usr/sbin/dockerd"))
			e := &docker{testbed: b, version: version, engine: harnesstest.StartDocker(t, root, b.Containerd, b.snapshotter)}
			e.differ = b.awaitNoCopy(t)
			t.Run("pull", e.testPull)
			t.Run("run", e.testRun)
			t.Run("diff", e.testDiff)
			t.Run("commit", e.testCommit)
			t.Run("cp from", e.testCopyFrom)
			t.Run("cp into", e.testCopyInto)
			t.Run("build", e.testBuild)
			t.Run("save", e.testSave)
			t.Run("prune", e.testPrune)
			// The classic builder leaves an image for each step.
			for image := range strings.FieldsSeq(b.Ctr(t, "--namespace", "moby", "images", "ls", "-q")) {
				b.Ctr(t, "--namespace", "moby", "images", "rm", "--sync", image)
			}
			b.requireEmpty(t)
		})
	}
}

// run runs docker, without networks.
func (e *docker) run(t *testing.T, args ...string) string {
	t.Helper()
	return e.engine.Run(t, nil, args...)
}

func (e *docker) inContainer(t *testing.T, image, command string) string {
	t.Helper()
	return e.run(t, "run", "--rm", "--network", "none", image, "sh", "-c", command)
}

// requireLayers requires that thinsnap's differ has made this number of layers since the previous requireLayers, and no
// other differ has made one.
func (e *docker) requireLayers(t *testing.T, made uint64) {
	t.Helper()
	before, after := e.differ, e.awaitNoCopy(t)
	require.Equal(t, before.Inodes+made, after.Inodes)
	require.Equal(t, before.Walked+before.Left+before.Failed, after.Walked+after.Left+after.Failed, "%+v", after)
	e.differ = after
}

func (e *docker) testPull(t *testing.T) {
	require.Equal(t, e.snapshotter, e.run(t, "info", "--format", "{{.Driver}}"))
	e.run(t, "pull", "--quiet", e.images.Busybox)
}

func (e *docker) testRun(t *testing.T) {
	e.run(t, "run", "--name", "changed", "--network", "none", e.images.Busybox, "sh", "-c",
		"grep ' / ' /proc/mounts; echo new > /new; rm /data/numbers; mv /etc/passwd /moved")
	require.Regexp(t, `^/dev/mapper/docker-snap-\d+ / ext4 rw`, e.run(t, "logs", "changed"))
}

// testDiff compares a container with its image. Docker mounts a view of the image without a lease: if containerd
// collects garbage at that moment, docker diff fails and is run again.
func (e *docker) testDiff(t *testing.T) {
	out, err := e.engine.Try("diff", "changed")
	for lost := 1; err != nil && lost <= 5; lost++ {
		text, readErr := os.ReadFile(e.engine.LogFile())
		require.NoError(t, readErr)
		require.Equal(t, lost, strings.Count(string(text), "error removing the parent view snapshot"), "no view was lost: %v", err)
		out, err = e.engine.Try("diff", "changed")
	}
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"C /data", "D /data/numbers", "C /etc", "D /etc/passwd", "A /moved", "A /new"}, strings.Split(out, "\n"))
}

func (e *docker) testCommit(t *testing.T) {
	e.run(t, "commit", "changed", "committed")
	e.requireLayers(t, 1)
	require.Equal(t, "new", e.inContainer(t, "committed", "cat /new; ls /data/numbers /etc/passwd 2>/dev/null || true"))
}

// whileRunning calls a function while the container "running" runs.
func (e *docker) whileRunning(t *testing.T, call func()) {
	t.Helper()
	e.run(t, "run", "--detach", "--name", "running", "--network", "none", e.images.Busybox, "sleep", "1000")
	defer e.run(t, "rm", "--force", "running")
	call()
}

// testCopyFrom copies from a container that has ended, and from a running one.
func (e *docker) testCopyFrom(t *testing.T) {
	e.whileRunning(t, func() {
		e.run(t, "exec", "running", "sh", "-c", "echo new > /new")
		for _, container := range []string{"changed", "running"} {
			out := filepath.Join(t.TempDir(), "out")
			e.run(t, "cp", container+":/new", out)
			content, err := os.ReadFile(out)
			require.NoError(t, err)
			require.Equal(t, "new\n", string(content), container)
		}
	})
}

// testCopyInto copies into a container that has ended, and into a running one. Before Linux 6.6, Debian's Docker 28
// fails at that, also on overlayfs: "chmod copied: via /proc/self/fd/24: no such file or directory".
func (e *docker) testCopyInto(t *testing.T) {
	_, _, errno := unix.Syscall6(unix.SYS_FCHMODAT2, ^uintptr(0), 0, 0, 0, 0, 0)
	if errno == unix.ENOSYS && e.version == "28" {
		t.Skip("this Docker copies into containers on Linux 6.6 and newer only, with any snapshotter")
	}
	in := filepath.Join(t.TempDir(), "in")
	require.NoError(t, os.WriteFile(in, []byte("copied\n"), 0o600))
	e.whileRunning(t, func() {
		for _, container := range []string{"changed", "running"} {
			e.run(t, "cp", in, container+":/copied")
		}
		require.Equal(t, "copied", e.run(t, "exec", "running", "cat", "/copied"))
	})
	e.run(t, "commit", "changed", "copied")
	e.requireLayers(t, 1)
	require.Equal(t, "copied", e.inContainer(t, "copied", "cat /copied"))
	e.run(t, "rmi", "copied")
}

func (e *docker) testBuild(t *testing.T) {
	files := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(files, "copied"), []byte("copied\n"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(files, "Dockerfile"),
		fmt.Appendf(nil, "FROM %s\nCOPY copied /copied\nRUN cp /copied /built; rm /data/numbers\n", e.images.Busybox), 0o600))
	for image, kit := range map[string]string{"classic": "0", "buildkit": "1"} {
		e.engine.Run(t, []string{"DOCKER_BUILDKIT=" + kit}, "build", "--network", "none", "--tag", image, files)
		e.requireLayers(t, 2)
		require.Equal(t, "copied", e.inContainer(t, image, "cat /built"))
	}
}

func (e *docker) testSave(t *testing.T) {
	file := filepath.Join(t.TempDir(), "saved")
	e.run(t, "save", "--output", file, "committed")
	e.run(t, "rmi", "committed")
	e.run(t, "load", "--input", file)
	require.Equal(t, "new", e.inContainer(t, "committed", "cat /new"))
}

func (e *docker) testPrune(t *testing.T) {
	e.run(t, "rm", "changed")
	e.run(t, "builder", "prune", "--all", "--force")
	e.run(t, "system", "prune", "--all", "--force")
	var usage struct{ Active, TotalCount string }
	require.NoError(t, json.Unmarshal([]byte(strings.Split(e.run(t, "system", "df", "--format", "json"), "\n")[0]), &usage))
	require.Equal(t, "0", usage.TotalCount)
}
