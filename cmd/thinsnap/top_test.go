package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/thinsnap/thinsnap/internal/admin"
)

func TestTopOnce(t *testing.T) {
	address := fakeDaemon(t)
	want := `pool thinsnap  rw  loop, ext4  up 1h30m0s
data      █░░░░░░░░░░░░░░░░░░░┃░░░░░░░░░░░░░░░░░░░   1.4%  300MiB used, 20GiB available
metadata  ░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░   0.0%  1MiB used, 1.999GiB available
snapshots 4: 2 committed, 1 active, 1 view
volumes   2 active, 1 of them spare; 1 in the trash, 3 deferred because in use

CALL  PER SECOND  ENDED  FAILED  MEAN

TRASH      FOR  KEY
volume 9  1m0s  default/9/old

  USED  SHARED  KIND       BELONGS TO                                     SNAPSHOT
120MiB      0B  committed  image docker.io/library/debian:12 and 1 other  ` + layerKey + `
  1MiB  120MiB  committed  image docker.io/library/python:3               ` + layer2Key + `
     -       -  active     pod prod/shop-1: web                           default/3/box
    0B  121MiB  view       -                                              default/4/look
`
	require.Equal(t, want, output(t, false, "--admin-address", address, "top"))
	require.Contains(t, output(t, true, "--admin-address", address, "top", "--once"), "default/2/sha256:222222222222…")

	require.Equal(t, exitUsage, try(t, false, backend{}, "--admin-address", address, "top", "--interval", "1ms").code)
	require.Equal(t, exitUnavailable, try(t, false, backend{}, "--admin-address", address+"x", "top").code)
}

func TestTopRates(t *testing.T) {
	now := time.Now()
	w := &watcher{
		at: now, sinceBefore: 2 * time.Second,
		before: []admin.CallTotal{{Method: "Prepare", Ended: 10}},
		activity: admin.Activity{
			Totals: []admin.CallTotal{
				{Method: "Commit", Ended: 4, Failed: 1, Seconds: 1}, {Method: "Prepare", Ended: 15, Seconds: 0.0015},
			},
			Running:      []admin.RunningCall{{Method: "Remove", Key: "k\x1b]0;owned\a", StartedAt: now.Add(-1500 * time.Millisecond)}},
			RunningTotal: 3,
		},
	}
	text := strings.Join(view{key: printable}.lines(w, 40), "\n")
	require.Contains(t, text, `
CALL     PER SECOND  ENDED  FAILED   MEAN
Commit          2.0      4       1  250ms
Prepare         2.5     15       0  100µs

RUNNING   FOR  KEY
Remove   1.5s  "k\x1b]0;owned\a"
2 more`)
	require.NotContains(t, text, "\x1b")
}

// TestTopFits: on a small screen, the most important lines are shown.
func TestTopFits(t *testing.T) {
	w := &watcher{at: time.Now()}
	for i := range 500 {
		w.activity.Running = append(w.activity.Running, admin.RunningCall{Method: "Prepare", Key: fmt.Sprint(i), StartedAt: w.at})
		w.activity.Trash = append(w.activity.Trash, admin.Removed{Key: fmt.Sprint(i), DeviceID: uint32(i), Since: w.at})
		w.snapshots = append(w.snapshots, admin.Snapshot{Key: fmt.Sprint(i), Kind: admin.KindCommitted, Used: known(uint64(i))})
	}
	w.activity.RunningTotal, w.activity.TrashTotal = 500, 500
	for _, height := range []int{24, 40, 60} {
		lines := view{key: printable}.lines(w, height)
		require.LessOrEqual(t, len(lines), height)
		require.Greater(t, len(lines), height-3)
		require.Contains(t, strings.Join(lines, "\n"), "499B", "the largest")
	}
	view{key: printable}.lines(&watcher{}, 1)
}

// terminal opens a pseudo terminal, and returns the program's end and the user's end.
func terminal(t *testing.T) (program, user *os.File) {
	t.Helper()
	user, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	require.NoError(t, unix.IoctlSetPointerInt(int(user.Fd()), unix.TIOCSPTLCK, 0))
	number, err := unix.IoctlGetInt(int(user.Fd()), unix.TIOCGPTN)
	require.NoError(t, err)
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = program.Close()
		_ = user.Close()
	})
	require.NoError(t, unix.IoctlSetWinsize(int(program.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 30, Col: 60}))
	return program, user
}

// seenBy collects the output that the user sees.
type seenBy struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *seenBy) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *seenBy) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// TestTopOnTerminal: top refreshes, fits the window, ends with q, and restores the terminal.
func TestTopOnTerminal(t *testing.T) {
	address := fakeDaemon(t)
	for name, key := range map[string]string{"q": "q", "Ctrl-C": "\x03"} {
		t.Run(name, func(t *testing.T) {
			program, user := terminal(t)
			before, err := term.GetState(int(program.Fd()))
			require.NoError(t, err)
			seen := &seenBy{}
			go func() { _, _ = io.Copy(seen, user) }()
			a := &app{in: program, out: program, errOut: program, terminal: true, colour: true}
			ended := make(chan int, 1)
			go func() {
				ended <- a.run(t.Context(), []string{"thinsnap", "--admin-address", address, "top", "--interval", "200ms"})
			}()
			frames := func() int { return strings.Count(seen.String(), "\x1b[H") }
			require.Eventually(t, func() bool { return frames() >= 3 }, 10*time.Second, 10*time.Millisecond)
			_, err = user.WriteString("x" + key)
			require.NoError(t, err)
			require.Equal(t, exitOK, <-ended)
			require.Eventually(t, func() bool { return strings.HasSuffix(seen.String(), "\x1b[?25h\x1b[?1049l") }, 10*time.Second, 10*time.Millisecond)
			after, err := term.GetState(int(program.Fd()))
			require.NoError(t, err)
			require.Equal(t, before, after)
			require.True(t, strings.HasPrefix(seen.String(), "\x1b[?1049h\x1b[?25l\x1b[H"))
			for line := range strings.SplitSeq(strings.Split(seen.String(), "\x1b[H")[1], "\r\n") {
				require.LessOrEqual(t, width(strings.NewReplacer("\x1b[K", "", "\x1b[J", "").Replace(line)), 60)
			}
		})
	}
}
