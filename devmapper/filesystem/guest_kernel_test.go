package filesystem_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/filesystem"
)

// setSuperblock changes an ext4, as a virtual machine can that has it as its disk.
func setSuperblock(t *testing.T, dev string, commands ...string) {
	t.Helper()
	script := filepath.Join(t.TempDir(), "commands")
	require.NoError(t, os.WriteFile(script, []byte(strings.Join(commands, "\n")+"\n"), 0o600))
	out, err := exec.Command("debugfs", "-w", "-f", script, dev).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// TestGuestCannotPanicTheHost: a guest's superblock requests a panic on an error, and causes an
// error at each mount. The test fails by a panic of this host.
func TestGuestCannotPanicTheHost(t *testing.T) {
	for name, commands := range map[string][]string{
		"s_errors":     {"ssv errors 3"},
		"s_mount_opts": {"ssv mount_opts errors=panic"},
	} {
		for use, f := range map[string]func(dev string) error{
			"recover": func(dev string) error { return filesystem.Recover(dev, filesystem.Ext4) },
			"grow":    func(dev string) error { return filesystem.Grow(dev, filesystem.Ext4, 96<<20) },
			"trim": func(dev string) error {
				_, err := filesystem.Trim(dev, filesystem.Ext4, 0, 1<<20)
				return err
			},
			"share": func(dev string) error {
				dir := t.TempDir() + "/share"
				if _, err := filesystem.Mount(dev, filesystem.Ext4, dir, nil); err != nil {
					return err
				}
				return filesystem.Unmount(dir)
			},
		} {
			t.Run(name+" "+use, func(t *testing.T) {
				dev, _ := device(t, 64<<20)
				require.NoError(t, filesystem.Make(t.Context(), dev, filesystem.Ext4, nil))
				// ssv last_orphan sets an inode that cannot be on the list of orphans.
				setSuperblock(t, dev, append(commands, "ssv last_orphan 3", "feature needs_recovery")...)
				t.Logf("%s: %v", use, f(dev))
				sb, err := filesystem.Identify(dev)
				require.NoError(t, err)
				require.Equal(t, filesystem.Ext4, sb.Type)
			})
		}
	}
}

// TestGuestChoosesNoJournalDevice: an ext4 names an external journal's device by its number, and a
// mount opens that device.
func TestGuestChoosesNoJournalDevice(t *testing.T) {
	for name, commands := range map[string][]string{
		"s_journal_dev":       {"ssv journal_dev 0x0701", "ssv journal_inum 0"},
		"both":                {"ssv journal_dev 0x0701"},
		"journal_dev option":  {"ssv mount_opts journal_dev=0x0701"},
		"journal_path option": {"ssv mount_opts journal_path=/dev/loop1"},
		"a journal device":    {"feature journal_dev"},
		"mmp":                 {"feature mmp", "ssv mmp_interval 300"},
	} {
		t.Run(name, func(t *testing.T) {
			dev, _ := device(t, 64<<20)
			require.NoError(t, filesystem.Make(t.Context(), dev, filesystem.Ext4, nil))
			setSuperblock(t, dev, commands...)
			require.ErrorIs(t, filesystem.Recover(dev, filesystem.Ext4), filesystem.ErrUnsafe)
			_, err := filesystem.Mount(dev, filesystem.Ext4, t.TempDir(), nil)
			require.ErrorIs(t, err, filesystem.ErrUnsafe)
			require.NotErrorIs(t, err, unix.EBUSY)
		})
	}
}
