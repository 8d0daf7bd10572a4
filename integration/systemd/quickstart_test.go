package systemd

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// quickStart returns the commands of README's Quick start, and the one that replaces the second for a pool on a disk.
func quickStart(t *testing.T) (commands []string, onDisk string) {
	t.Helper()
	blocks := codeBlocks(t, "../../README.md", "Quick start")
	require.Len(t, blocks, 2)
	require.Len(t, blocks[1], 1)
	return blocks[0], strings.Replace(blocks[1][0], "/dev/sdb", "$(readlink -f /dev/disk/by-id/virtio-disk0)", 1)
}

// codeBlocks returns the lines of each code block in a section of a document.
func codeBlocks(t *testing.T, document, title string) (blocks [][]string) {
	t.Helper()
	text, err := os.ReadFile(document)
	require.NoError(t, err)
	_, section, found := strings.Cut(string(text), "\n## "+title+"\n")
	require.True(t, found)
	section, _, _ = strings.Cut(section, "\n## ")
	inBlock := false
	for line := range strings.SplitSeq(section, "\n") {
		command, isCode := strings.CutPrefix(line, "    ")
		if !isCode {
			inBlock = inBlock && line == ""
			continue
		}
		if !inBlock {
			blocks = append(blocks, nil)
		}
		inBlock = true
		blocks[len(blocks)-1] = append(blocks[len(blocks)-1], command)
	}
	return blocks
}

// TestQuickStart runs README's commands as printed on a new Debian; only the image comes from a registry in the guest.
// After a reboot the containers have their data, and new ones start. Then a pool on a disk replaces the pool in files,
// as in docs/pools.md.
func TestQuickStart(t *testing.T) {
	image := regexp.MustCompile(`docker\.io/\S+`)
	for _, mode := range []string{"loop", "direct-lvm"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			commands, onDisk := quickStart(t)
			if mode == "direct-lvm" {
				commands[1] = onDisk
			}
			g := newGuest(t, 1)
			g.serveImages(t)
			g.run(t, "! command -v thinsnap; cp "+fromHost(t, deb(t))+" .")
			var out string
			for _, command := range commands {
				if strings.HasPrefix(command, "sudo thinsnap doctor ") {
					g.eventually(t, command) // on a slow machine containerd does not answer in time at first
					continue
				}
				out = g.run(t, image.ReplaceAllString(command, busybox))
			}
			require.Contains(t, out, "/dev/mapper/thinsnap-", "the last command shows the container's file system")
			require.Contains(t, g.run(t, "thinsnap info"), "Pool Mode: "+mode+"\n")
			g.start(t, "box")

			g.reboot(t)
			g.eventually(t, "thinsnap doctor")
			g.run(t, "! journalctl --boot --unit=thinsnap | grep 'the pool is not open'")
			g.startAgain(t, "box")
			require.Contains(t, g.run(t, image.ReplaceAllString(commands[len(commands)-1], busybox)), "/dev/mapper/thinsnap-")
			require.Contains(t, g.run(t, "thinsnap info"), "Pool Mode: "+mode+"\n")
			g.run(t, "thinsnap check")
			if mode == "loop" {
				g.run(t, "ctr tasks rm --force box; ctr containers rm box; ctr images rm --sync "+busybox)
				for _, command := range codeBlocks(t, "../../docs/pools.md", "Remove a pool")[0] {
					g.run(t, command)
				}
				g.run(t, onDisk)
				g.serveImages(t) // the reboot has ended the registry
				for _, command := range commands[3:] {
					out = g.run(t, image.ReplaceAllString(command, busybox))
				}
				require.Contains(t, out, "/dev/mapper/thinsnap-")
				require.Contains(t, g.run(t, "thinsnap info"), "Pool Mode: direct-lvm\n")
				g.run(t, "test ! -e /var/lib/thinsnap/pool/data; thinsnap check")
			}

			require.Contains(t, g.run(t, "apt-get purge --yes thinsnap 2>&1"), "systemctl restart containerd")
			g.run(t, "systemctl restart containerd; ! find /etc/containerd /etc/systemd -name '*thinsnap*.toml' -o -name disk.conf | grep .")
			g.eventually(t, "ctr plugins ls | grep overlayfs && ! ctr plugins ls | grep thinsnap")
		})
	}
}
