package vm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func boot(t *testing.T, c Config) *Machine {
	t.Helper()
	m, err := Boot(t.Context(), c)
	require.NoError(t, err)
	t.Cleanup(m.Kill)
	return m
}

func shell(t *testing.T, m *Machine, command string) string {
	t.Helper()
	var out bytes.Buffer
	err := m.Run(t.Context(), Command{Args: []string{"sh", "-euc", command}, Stdout: &out, Stderr: &out})
	require.NoError(t, err, out.String())
	return strings.TrimSpace(out.String())
}

func TestGuestRunsCommands(t *testing.T) {
	requireGuests(t)
	share := t.TempDir()
	m := boot(t, Config{Shares: []string{share}})

	t.Run("output and status", func(t *testing.T) {
		var stdout, stderr bytes.Buffer
		err := m.Run(t.Context(), Command{
			Args: []string{"sh", "-c", `echo "$WORD in $PWD"; echo no >&2; exit 7`},
			Env:  []string{"WORD=yes"}, Dir: "/etc", Stdout: &stdout, Stderr: &stderr,
		})
		var exit *ExitError
		require.ErrorAs(t, err, &exit)
		require.Equal(t, 7, exit.Status)
		require.Equal(t, "yes in /etc\n", stdout.String())
		require.Equal(t, "no\n", stderr.String())
	})
	t.Run("large output is complete and in order", func(t *testing.T) {
		var out bytes.Buffer
		require.NoError(t, m.Run(t.Context(), Command{Args: []string{"seq", "200000"}, Stdout: &out}))
		var want bytes.Buffer
		for i := range 200000 {
			fmt.Fprintln(&want, i+1)
		}
		require.Equal(t, sha256.Sum256(want.Bytes()), sha256.Sum256(out.Bytes()))
	})
	t.Run("ended by a signal", func(t *testing.T) {
		p, err := m.Start(Command{Args: []string{"sleep", "1000"}})
		require.NoError(t, err)
		require.NoError(t, p.Signal(syscall.SIGTERM))
		var exit *ExitError
		require.ErrorAs(t, p.Wait(), &exit)
		require.Equal(t, 128+int(syscall.SIGTERM), exit.Status)
	})
	t.Run("no such program", func(t *testing.T) {
		err := m.Run(t.Context(), Command{Args: []string{"no-such-program"}})
		require.ErrorIs(t, err, ErrNotStarted)
		require.ErrorIs(t, err, os.ErrNotExist)
	})
	t.Run("time limit", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		err := m.Run(ctx, Command{Args: []string{"sh", "-c", "sleep 1000; true"}})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.NotErrorIs(t, err, ErrGuestGone)
	})
	t.Run("a remaining daemon does not delay the report", func(t *testing.T) {
		var out bytes.Buffer
		require.NoError(t, m.Run(t.Context(), Command{Args: []string{"sh", "-c", "sleep 1000 & echo done"}, Stdout: &out}))
		require.Equal(t, "done\n", out.String())
	})
	t.Run("several at once", func(t *testing.T) {
		fifo := "/run/tmp/several"
		shell(t, m, "mkfifo "+fifo)
		reader, err := m.Start(Command{Args: []string{"cat", fifo}})
		require.NoError(t, err)
		shell(t, m, "echo x > "+fifo)
		require.NoError(t, reader.Wait())
	})
	t.Run("surroundings", func(t *testing.T) {
		require.Equal(t, "0", shell(t, m, "id -u"))
		require.Contains(t, shell(t, m, "dmsetup targets"), "thin-pool")
		require.Equal(t, "tmpfs", shell(t, m, "stat -f -c %T $TMPDIR /var/lib/thinsnap | uniq"))
		require.Contains(t, shell(t, m, "cat /sys/fs/cgroup/cgroup.controllers"), "memory")
		shell(t, m, "modprobe -a br_netfilter veth xt_comment dm-flakey dm-log-writes")
		shell(t, m, "ip link show lo | grep -q LOWER_UP")
		shell(t, m, "bash -c 'cat <(true)'")
	})
	t.Run("the host's files cannot be changed", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		require.NoError(t, os.WriteFile(file, []byte("host"), 0o600))
		require.Equal(t, "guest", shell(t, m, "echo guest > "+file+"; cat "+file))
		content, err := os.ReadFile(file)
		require.NoError(t, err)
		require.Equal(t, "host", string(content))
	})
	t.Run("files in a share can be changed", func(t *testing.T) {
		shell(t, m, "echo guest > "+share+"/file")
		content, err := os.ReadFile(filepath.Join(share, "file"))
		require.NoError(t, err)
		require.Equal(t, "guest\n", string(content))
	})
	t.Run("a panic differs from a program's end", func(t *testing.T) {
		err := m.Run(t.Context(), Command{Args: []string{"sh", "-c", "echo c > /proc/sysrq-trigger; sleep 1000"}})
		require.ErrorIs(t, err, ErrGuestGone)
		require.Contains(t, m.Console(), "Kernel panic")
		require.ErrorIs(t, m.Run(t.Context(), Command{Args: []string{"true"}}), ErrGuestGone)
	})
}

func TestDisksOutliveAKilledGuest(t *testing.T) {
	requireGuests(t)
	dir := t.TempDir()
	config := Config{Disks: []Disk{
		{Path: filepath.Join(dir, "small"), Size: 64 << 20},
		{Path: filepath.Join(dir, "with,comma"), Size: 1 << 30},
	}}
	m := boot(t, config)
	require.Equal(t, "67108864", shell(t, m, "blockdev --getsize64 $THINSNAP_DISK0"))
	shell(t, m, "mkfs.ext4 -q $THINSNAP_DISK1; mkdir /run/mnt; mount $THINSNAP_DISK1 /run/mnt")
	// Fsynced data survive the guest's end at any moment.
	writer, err := m.Start(Command{Args: []string{"sh", "-c", "dd if=/dev/zero of=/run/mnt/noise bs=1M count=100"}})
	require.NoError(t, err)
	shell(t, m, "echo kept > /run/mnt/kept; sync /run/mnt/kept; echo raw | dd of=$THINSNAP_DISK0 conv=fsync")
	m.Kill()
	require.ErrorIs(t, writer.Wait(), ErrGuestGone)

	config.Udev = true
	m = boot(t, config)
	require.Equal(t, "raw", shell(t, m, "head -c 3 $THINSNAP_DISK0"))
	require.Equal(t, "kept", shell(t, m, "mkdir /run/mnt; mount $THINSNAP_DISK1 /run/mnt; cat /run/mnt/kept"))
	require.Equal(t, shell(t, m, "echo $THINSNAP_DISK1"), shell(t, m, "readlink -f /dev/disk/by-id/virtio-disk1"))
	require.Empty(t, shell(t, m, "echo ${DM_DISABLE_UDEV-}"))
	// An orderly stop keeps data that were not fsynced, too.
	shell(t, m, "echo later > /run/mnt/later")
	require.NoError(t, m.Stop(t.Context()))
	// They may still be in the journal, which debugfs does not read.
	out, err := exec.Command("/sbin/e2fsck", "-y", "-E", "journal_only", config.Disks[1].Path).CombinedOutput()
	require.NoError(t, err, "%s", out)
	out, err = exec.Command("/sbin/debugfs", "-R", "cat /later", config.Disks[1].Path).Output()
	require.NoError(t, err)
	require.Equal(t, "later\n", string(out))
}

// TestGuestThatHangsIsKilled prints the kernel's warnings itself: a busy guest keeps running, and a hung one is killed.
func TestGuestThatHangsIsKilled(t *testing.T) {
	requireGuests(t)
	m := boot(t, Config{})
	shell(t, m, "echo 'watchdog: BUG: soft lockup - CPU#0 stuck for 23s! [sh:1]' > /dev/console")
	hangs := "echo 'watchdog: BUG: soft lockup - CPU#1 stuck for 127s! [sh:1]' > /dev/console; sleep 600"
	err := m.Run(t.Context(), Command{Args: []string{"sh", "-c", hangs}})
	require.ErrorIs(t, err, ErrGuestGone)
	require.ErrorIs(t, err, ErrGuestHung)
	require.Contains(t, m.Console(), "stuck for 23s!")
}

func TestStaleCodeIsNoOops(t *testing.T) {
	for line, want := range map[string]bool{
		"[    2.870387] Oops: int3: 0000 [#1] SMP NOPTI":           true,
		"[  102.870387] int3: 0000 [#1] PREEMPT SMP NOPTI":         true,
		"[   12.870387] Oops: general protection fault: 0000 [#1]": false,
		"[   12.870387] asm_exc_int3+0x3a/0x40":                    false,
	} {
		c := newConsole(nil)
		_, err := c.Write([]byte(line + "\r\nlater\n"))
		require.NoError(t, err)
		require.Equal(t, want, c.staleCode(), line)
	}
}

func TestGuestThatDoesNotAnswerIsKilled(t *testing.T) {
	requireGuests(t)
	_, err := Boot(t.Context(), Config{BootLimit: time.Second})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "its console:")
}

func TestDiskIsNotShortened(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	require.Error(t, Disk{Path: path}.prepare())
	require.NoError(t, Disk{Path: path, Size: 4096}.prepare())
	require.NoError(t, Disk{Path: path}.prepare())
	require.Error(t, Disk{Path: path, Size: 8192}.prepare())
}
