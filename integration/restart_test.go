package integration

import (
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A container goes on while the daemon is stopped, however it ends, and can be worked with when it is back.
func testRestart(t *testing.T, b *bench) {
	if b.thinsnap == nil {
		t.Skip("the stand-in is part of containerd")
	}
	nerdctl := func(args ...string) string { return b.Nerdctl(t, b.snapshotter, args...) }
	image := b.images.Busybox
	nerdctl("pull", "--quiet", image)
	nerdctl("run", "--detach", "--name", "counter", "--net", "none", image, "sh", "-c",
		"i=0; while sleep 0.1; do i=$((i+1)); echo $i > /count.new; mv /count.new /count; done")

	counts := func() {
		t.Helper()
		count := func() int {
			n, err := strconv.Atoi(nerdctl("exec", "counter", "cat", "/count"))
			require.NoError(t, err)
			return n
		}
		before := count()
		time.Sleep(500 * time.Millisecond)
		require.Greater(t, count(), before)
	}
	time.Sleep(time.Second)
	counts()
	for name, stop := range map[string]func(){
		"stopped": func() { b.thinsnap.Stop(t) },
		"killed":  b.thinsnap.Kill,
	} {
		t.Run(name, func(t *testing.T) {
			stop()
			counts()
			b.thinsnap.Start(t)
			counts()
			nerdctl("commit", "counter", "counted:"+name)
			require.NotEmpty(t, nerdctl("run", "--rm", "--net", "none", "counted:"+name, "cat", "/count"))
			nerdctl("rmi", "counted:"+name)
		})
	}
	nerdctl("rm", "--force", "counter")
	nerdctl("rmi", image)
}
