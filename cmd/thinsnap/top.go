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
	// minInterval is the minimum time between two requests to the daemon.
	minInterval = 200 * time.Millisecond
	// listInterval is the time between two lists of all snapshots, unless their number has changed.
	listInterval = 10 * time.Second
)

func (a *app) topCommand() *cli.Command {
	return &cli.Command{
		Name:  "top",
		Usage: "monitor the pool's space and the daemon's calls",
		Description: "On a terminal, the display is refreshed until q or Ctrl-C is pressed. Without a terminal, or with --once,\n" +
			"it is printed once, without rates, because a rate takes two samples.",
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "interval", Usage: "`TIME` between two refreshes", Value: 2 * time.Second},
			&cli.BoolFlag{Name: "once", Usage: "print once and exit"},
			noTruncFlag(),
		},
		Action: withArgs(0, 0, a.top),
	}
}

func (a *app) top(ctx context.Context, c *cli.Command) error {
	interval := c.Duration("interval")
	if interval < minInterval {
		return usagef("--interval %s: must be %s or more", interval, minInterval)
	}
	client, err := newClient(c)
	if err != nil {
		return err
	}
	watched := &watcher{client: client}
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

// watch shows the view until the user quits. It continues while the daemon does not answer.
func watch(ctx context.Context, window *screen, watched *watcher, view view, interval time.Duration) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	var stale error
	for {
		columns, height := window.size()
		lines := view.lines(watched, height)
		if stale != nil {
			lines = append([]string{view.colour.red("stale: " + stale.Error())}, lines...)
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
			stale = watched.look(ctx)
		}
	}
}

// watcher holds the daemon's last two answers.
type watcher struct {
	client *admin.Client

	at        time.Time
	info      admin.Info
	activity  admin.Activity
	snapshots []admin.Snapshot
	owners    map[string]admin.Owner
	listed    time.Time

	before      []admin.CallTotal
	sinceBefore time.Duration // 0 after the first answer
	counted     admin.SnapshotCounts
}

// look reads the daemon's reports. After an error the watcher is unchanged.
func (w *watcher) look(ctx context.Context) error {
	info, err := w.client.Info(ctx)
	if err != nil {
		return err
	}
	activity, err := w.client.Activity(ctx)
	if err != nil {
		return err
	}
	now := time.Now()
	if w.listed.IsZero() || now.Sub(w.listed) >= listInterval || info.Snapshots != w.counted {
		snapshots, err := w.client.Snapshots(ctx, false)
		if err != nil {
			return err
		}
		w.snapshots, w.listed, w.counted = snapshots, now, info.Snapshots
		// A display without owners is still useful.
		if answer, err := w.client.Owners(ctx); err == nil {
			w.owners = byKey(answer.Owners)
		}
	}
	if !w.at.IsZero() {
		w.before, w.sinceBefore = w.activity.Totals, now.Sub(w.at)
	}
	w.at, w.info, w.activity = now, info, activity
	return nil
}
