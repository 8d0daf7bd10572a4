package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/clients"
)

// ownersOf returns the owners of snapshots, by key. If they are unknown, the map is empty and a log
// line has the reason: a list without owners is still useful.
func (a *app) ownersOf(ctx context.Context, client *admin.Client) map[string]admin.Owner {
	answer, err := client.Owners(ctx)
	unknown := answer.Unknown
	if err != nil {
		unknown = err.Error()
	}
	if unknown != "" {
		fmt.Fprintln(a.errOut, "thinsnap: the snapshots are shown without their images and containers: "+printable(unknown))
	}
	return byKey(answer.Owners)
}

func byKey(owners []admin.Owner) map[string]admin.Owner {
	found := make(map[string]admin.Owner, len(owners))
	for _, o := range owners {
		found[o.Key] = o
	}
	return found
}

// owned is a snapshot with its owner, nil if there is none or it is unknown.
type owned struct {
	admin.Snapshot
	Owner *admin.Owner `json:"owner,omitempty"`
}

// listOwned returns all snapshots of the daemon, sorted by namespace and number. Labels are only in
// JSON output.
func (a *app) listOwned(ctx context.Context, c *cli.Command) ([]owned, error) {
	client, err := newClient(c)
	if err != nil {
		return nil, err
	}
	snapshots, err := client.Snapshots(ctx, c.Bool("json"))
	if err != nil || len(snapshots) == 0 {
		return []owned{}, err
	}
	owners := a.ownersOf(ctx, client)
	all := make([]owned, len(snapshots))
	for i, s := range snapshots {
		all[i].Snapshot = s
		if o, ok := owners[s.Key]; ok {
			all[i].Owner = &o
		}
	}
	slices.SortStableFunc(all, func(x, y owned) int { return compareKeys(x.Key, y.Key) })
	return all, nil
}

// compareKeys sorts containerd's keys by namespace and number, after all other keys.
func compareKeys(a, b string) int {
	spaceA, numberA, _, _ := clients.SplitKey(a)
	spaceB, numberB, _, _ := clients.SplitKey(b)
	return cmp.Or(cmp.Compare(spaceA, spaceB), cmp.Compare(numberA, numberB), cmp.Compare(a, b))
}

// ownerText describes a snapshot's owner in a table.
func ownerText(o *admin.Owner) string {
	if o == nil {
		return "-"
	}
	switch c := o.Container; {
	case c != nil && c.Pod != "":
		what := c.Name
		if c.Sandbox {
			what = "sandbox"
		}
		return printable(fmt.Sprintf("pod %s/%s: %s", c.PodNamespace, c.Pod, orDash(what)))
	case c != nil && c.Name != "":
		return printable("container " + c.Name)
	case c != nil:
		return printable("container " + shortKey(c.ID))
	case len(o.Images) > 1:
		return printable(fmt.Sprintf("image %s and %s", o.Images[0], plural(len(o.Images)-1, "other")))
	case len(o.Images) == 1:
		return printable("image " + o.Images[0])
	default:
		return "-"
	}
}

func ownerRows(o *admin.Owner) []row {
	if o == nil {
		return nil
	}
	images := make([]string, len(o.Images))
	for i, name := range o.Images {
		images[i] = printable(name)
	}
	rows := []row{{"Images", strings.Join(images, "\n        ")}}
	if c := o.Container; c != nil {
		rows = append(rows, row{"Container", printable(strings.TrimSpace(c.Name + " " + c.ID))},
			row{"Image", printable(c.Image)})
		if c.Pod != "" {
			pod := printable(c.PodNamespace + "/" + c.Pod)
			if c.Sandbox {
				pod += " (its sandbox)"
			}
			rows = append(rows, row{"Pod", pod})
		}
	}
	return rows
}
