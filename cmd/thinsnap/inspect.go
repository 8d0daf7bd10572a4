package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/thinsnap/thinsnap/internal/admin"
)

func (a *app) inspectCommand() *cli.Command {
	return &cli.Command{
		Name:        "inspect",
		Usage:       "describe a snapshot and the devices below it, down to the file or disk",
		ArgsUsage:   "KEY",
		Description: resolveHelp,
		Flags:       []cli.Flag{jsonFlag()},
		Action: withArgs(1, 1, func(ctx context.Context, c *cli.Command) error {
			client, err := newClient(c)
			if err != nil {
				return err
			}
			key, err := resolve(ctx, client, c.Args().First())
			if err != nil {
				return err
			}
			found := inspected{}
			if found.Inspection, err = client.Inspect(ctx, key); err != nil {
				return err
			}
			if o, ok := a.ownersOf(ctx, client)[key]; ok {
				found.Owner = &o
			}
			if c.Bool("json") {
				return printJSON(a.out, found)
			}
			return printInspection(a.out, &found)
		}),
	}
}

// inspected is an inspection with the snapshot's owner, nil if there is none or it is unknown.
type inspected struct {
	admin.Inspection
	Owner *admin.Owner `json:"owner,omitempty"`
}

func printInspection(w io.Writer, i *inspected) error {
	chain := make([]string, len(i.Chain))
	for n, key := range i.Chain {
		chain[n] = printable(key)
	}
	rows := append([]row{{"Key", printable(i.Key)}}, ownerRows(i.Owner)...)
	rows = append(rows, row{"Kind", i.Kind})
	if i.WritesLost {
		rows = append(rows, row{"Lost Writes", "possible; it can be neither committed nor forked"})
	}
	rows = append(rows, []row{
		{"Parents", orDash(strings.Join(chain, "\n         "))},
		{"Created", i.Created.UTC().Format("2006-01-02 15:04:05 MST")},
		{"Size", size(i.Size)},
		{"Used", sizeIfKnown(i.Used)},
		{"Shared", sizeIfKnown(i.Shared)},
		{"Exclusive", sizeIfKnown(i.Exclusive)},
		{"Mapped", sizeIfKnown(i.MappedBytes)},
		{"Device ID", deviceID(i.DeviceID)},
		{"Device", orDash(i.Device.Path)},
		{"State", deviceState(&i.Device)},
	}...)
	if err := printRows(w, rows); err != nil {
		return err
	}
	var b strings.Builder
	b.WriteString("Stack:\n")
	writeStack(&b, &i.Device, "  ", "  ")
	_, err := io.WriteString(w, b.String())
	return err
}

func deviceState(d *admin.Device) string {
	if !d.Active {
		return "not active"
	}
	words := []string{"active", "read-write"}
	if d.ReadOnly {
		words[1] = "read-only"
	}
	if d.Suspended {
		words = append(words, "suspended")
	}
	return strings.Join(append(words, fmt.Sprintf("open count %d", d.OpenCount)), ", ")
}

// writeStack draws a device with its tables, and the devices below it. The first line begins with
// head, the others with indent.
func writeStack(b *strings.Builder, d *admin.Device, head, indent string) {
	words := []string{d.Role}
	for _, word := range []string{d.Name, d.Number, d.Path} {
		if word != "" {
			words = append(words, word)
		}
	}
	if !d.Active {
		words = append(words, "(not active)")
	}
	b.WriteString(head + strings.Join(words, " ") + "\n")
	bar := "  "
	if len(d.Below) > 0 {
		bar = "│ "
	}
	for _, line := range d.Table {
		b.WriteString(indent + bar + "table  " + line + "\n")
	}
	for _, line := range d.Status {
		b.WriteString(indent + bar + "status " + line + "\n")
	}
	for i := range d.Below {
		branch, below := branches(i == len(d.Below)-1)
		writeStack(b, &d.Below[i], indent+branch, indent+below)
	}
}
