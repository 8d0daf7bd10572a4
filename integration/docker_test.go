package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// testDocker: thinsnap's differ makes the layers of docker commit, and of docker build with either builder. Each is
// compared with that of the walking differ.
func testDocker(t *testing.T, b *bench, tools harness.Tools) {
	dmtest.RequireThorough(t)
	engine := harnesstest.StartDocker(t, tools, b.Containerd, b.snapshotter)
	docker := func(args ...string) string { return engine.Run(t, nil, args...) }
	before := b.awaitNoCopy(t)
	made := func(layers uint64) {
		t.Helper()
		after := b.awaitNoCopy(t)
		require.Equal(t, before.Inodes+layers, after.Inodes)
		require.Equal(t, before.Walked+before.Left+before.Failed, after.Walked+after.Left+after.Failed, "%+v", after)
		before = after
	}
	docker("run", "--name", "changed", "--network", "none", b.images.Busybox, "sh", "-c",
		"echo new > /new; rm /data/numbers; mv /etc/passwd /moved")
	docker("commit", "changed", "committed")
	made(1)
	require.Equal(t, "new", docker("run", "--rm", "--network", "none", "committed", "sh", "-c",
		"cat /new; ls /data/numbers /etc/passwd 2>/dev/null || true"))
	files := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(files, "copied"), []byte("copied\n"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(files, "Dockerfile"),
		fmt.Appendf(nil, "FROM %s\nCOPY copied /copied\nRUN cp /copied /built; rm /data/numbers\n", b.images.Busybox), 0o600))
	images := []string{"committed", b.images.Busybox}
	for image, kit := range map[string]string{"classic": "0", "buildkit": "1"} {
		engine.Run(t, []string{"DOCKER_BUILDKIT=" + kit}, "build", "--network", "none", "--tag", image, files)
		made(2)
		require.Equal(t, "copied", docker("run", "--rm", "--network", "none", image, "cat", "/built"))
		images = append(images, image)
	}
	docker("rm", "changed")
	docker(append([]string{"rmi", "--force"}, images...)...)
	docker("builder", "prune", "--all", "--force")
	// The classic builder leaves an image for each step.
	for image := range strings.FieldsSeq(b.Ctr(t, "--namespace", "moby", "images", "ls", "-q")) {
		b.Ctr(t, "--namespace", "moby", "images", "rm", "--sync", image)
	}
}
