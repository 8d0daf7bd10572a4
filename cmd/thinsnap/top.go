package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/thinsnap/thinsnap/internal/admin"
)

const (
	// leastInterval is how often the daemon may be asked.
	leastInterval = 200 * time.Millisecond
	// listInterval is how often it is asked for all snapshots, unless their number has changed.
	listInterval = 10 * time.Second
)

func (a *app) topCommand() *cli.Command {
	return &cli.Command{
		Name:  "top",
		Usage: "watch how full the pool is and what the daemon does",
		Description: "On a terminal it is refreshed until q or Ctrl-C is pressed. Elsewhere, and with --once, it is printed once:\n" +
			"then there are no rates, which take two looks.",
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "interval", Usage: "refresh after this `TIME`", Value: 2 * time.Second},
			&cli.BoolFlag{Name: "once", Usage: "print it once"},
			noTruncFlag(),
		},
		Action: taking(0, 0, a.top),
	}
}

func (a *app) top(ctx context.Context, c *cli.Command) error {
	interval := c.Duration("interval")
	if interval < leastInterval {
		return usagef("--interval %s: must be %s or more", interval, leastInterval)
	}
	daemon, err := client(c)
	if err != nil {
		return err
	}
	watched := &watcher{daemon: daemon}
	if err := watched.look(ctx); err != nil {
		return err
	}
	view := view{key: a.keyWriter(c), colour: a.colour}
	out, ok := a.out.(*os.File)
	if c.Bool("once") || !a.terminal || !ok {
		_, err := fmt.Fprintln(a.out, strings.Join(view.lines(watched, 20), "\n"))
		return err
	}
	ctx, release := untilSignal(ctx)
	defer release()
	window, err := openScreen(a.in, out)
	if err != nil {
		return err
	}
	defer window.close()
	return watch(ctx, window, watched, view, interval)
}

// watch shows the view until somebody has seen enough. A daemon that does not answer may do so again.
func watch(ctx context.Context, window *screen, watched *watcher, view view, interval time.Duration) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	var trouble error
	for {
		columns, height := window.size()
		lines := view.lines(watched, height)
		if trouble != nil {
			lines = append([]string{view.colour.red("what you see is old: " + trouble.Error())}, lines...)
		}
		lines = lines[:min(len(lines), height)]
		for i, line := range lines {
			lines[i] = clip(line, columns)
		}
		if err := window.show(lines); err != nil {
			return err
		}
		select {
		case <-window.quit:
			return nil
		case <-ctx.Done():
			return nil
		case <-window.resized:
		case <-ticker.C:
			trouble = watched.look(ctx)
		}
	}
}

// watcher is what a daemon said the last two times that it was asked.
type watcher struct {
	daemon *admin.Client

	at        time.Time
	info      admin.Info
	activity  admin.Activity
	snapshots []admin.Snapshot
	listed    time.Time

	before      []admin.CallTotal
	sinceBefore time.Duration // 0 at the first look
	counted     admin.SnapshotCounts
}

// look asks the daemon. If it does not answer all is as before.
func (w *watcher) look(ctx context.Context) error {
	info, err := w.daemon.Info(ctx)
	if err != nil {
		return err
	}
	activity, err := w.daemon.Activity(ctx)
	if err != nil {
		return err
	}
	now := time.Now()
	if w.listed.IsZero() || now.Sub(w.listed) >= listInterval || info.Snapshots != w.counted {
		snapshots, err := w.daemon.Snapshots(ctx)
		if err != nil {
			return err
		}
		w.snapshots, w.listed, w.counted = snapshots, now, info.Snapshots
	}
	if !w.at.IsZero() {
		w.before, w.sinceBefore = w.activity.Totals, now.Sub(w.at)
	}
	w.at, w.info, w.activity = now, info, activity
	return nil
}
