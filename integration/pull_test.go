package integration

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// testPull: each client's way to pull unpacks the image, and removing the image removes its snapshots.
func testPull(t *testing.T, b *testbed) {
	for _, way := range []struct {
		name string
		skip bool
		pull func(t *testing.T) (image string)
	}{
		{name: "ctr with the transfer service", skip: !b.Release.Transfer, pull: func(t *testing.T) string {
			return b.transfer(t, b.snapshotter)
		}},
		{name: "ctr by itself", pull: func(t *testing.T) string {
			if b.Release.Transfer {
				b.Pull(t, b.snapshotter, b.images.Busybox, "--local")
			} else {
				b.Pull(t, b.snapshotter, b.images.Busybox)
			}
			return b.images.Busybox
		}},
		{name: "nerdctl", pull: func(t *testing.T) string {
			b.Nerdctl(t, b.snapshotter, "pull", "--quiet", b.images.Busybox)
			return b.images.Busybox
		}},
	} {
		t.Run(way.name, func(t *testing.T) {
			if way.skip {
				t.Skipf("%s cannot pull this way", b.Release.Name)
			}
			image := way.pull(t)
			snapshots := b.Snapshots(t, b.snapshotter)
			require.Len(t, snapshots, 2, "one for each layer")
			for _, s := range snapshots {
				require.Equal(t, "Committed", s.Kind)
			}
			b.RemoveImage(t, image)
			b.requireEmpty(t)
		})
	}
}

// transfer has containerd's transfer service pull the small image, and returns its name. The ctr of 1.7 unpacks only
// the platforms of --platform.
func (b *testbed) transfer(t *testing.T, snapshotter string) string {
	t.Helper()
	b.Ctr(t, append(b.transferArgs(snapshotter), b.secure)...)
	return b.secure
}

func (b *testbed) transferArgs(snapshotter string) []string {
	return []string{"images", "pull", "--local=false", "--platform", "linux/amd64", "--snapshotter", snapshotter}
}

// testPullBesideTheDiffer: the transfer service unpacks with the walking differ. No form of unpack_config lets it choose
// between that and thinsnap's, whether thinsnap answers or not.
func testPullBesideTheDiffer(t *testing.T, b *testbed) {
	dmtest.RequireThorough(t)
	if b.thinsnap == nil || !b.Release.DifferProxies {
		t.Skipf("%s cannot use thinsnap's differ", b.Release.Name)
	}
	config := filepath.Join(b.Dir, "config.toml")
	asItWas, err := os.ReadFile(config)
	require.NoError(t, err)
	configure := func(content []byte) {
		require.NoError(t, b.Stop())
		require.NoError(t, os.WriteFile(config, content, 0o600))
		require.NoError(t, b.Start())
	}
	defer configure(asItWas)
	local := []string{"images", "pull", "--local", "--plain-http", "--snapshotter", "overlayfs", b.images.Busybox}
	for _, c := range []struct {
		name, remove string
		unpacks      []string
	}{
		{"unpack_config with a differ", `$^`, []string{b.snapshotter, "overlayfs"}},
		{"unpack_config without a differ", `(?m)^  differ = .*\n`, []string{b.snapshotter, "overlayfs"}},
		{"without unpack_config", `(?m)^\[\[plugins\..*unpack_config\]\]\n( .*\n)*`, []string{"overlayfs"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			configure(regexp.MustCompile(c.remove).ReplaceAll(asItWas, nil))
			for _, snapshotter := range c.unpacks {
				image := b.transfer(t, snapshotter)
				require.Len(t, b.Snapshots(t, snapshotter), 2)
				b.RemoveImage(t, image)
			}
			b.Ctr(t, local...)
			b.Ctr(t, "images", "rm", "--sync", b.images.Busybox)
			b.thinsnap.Stop(t)
			image := b.transfer(t, "overlayfs")
			require.Len(t, b.Snapshots(t, "overlayfs"), 2)
			b.Ctr(t, "images", "rm", "--sync", image)
			_, err := b.TryCtr(local...)
			require.ErrorContains(t, err, "thinsnap.sock")
			b.thinsnap.Start(t)
		})
	}
	// containerd chooses between two differs by chance, so successful pulls do not prove that there was only one.
	log, err := os.ReadFile(b.LogFile())
	require.NoError(t, err)
	require.NotRegexp(t, `multiple differs match.*skipping \W*(walking|thinsnap-diff)`, string(log))
	configure(bytes.ReplaceAll(asItWas, []byte("differ = 'walking'"), []byte("differ = 'thinsnap-diff'")))
	_, err = b.TryCtr(append(b.transferArgs("overlayfs"), b.secure)...)
	require.ErrorContains(t, err, "not implemented")
	b.CollectGarbage(t)
}
