package main

import (
	"cmp"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/urfave/cli/v3"

	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/roff"
)

//go:generate go test . -run TestManual -update

var update = flag.Bool("update", false, "write docs/man/thinsnap.1 instead of comparing it")

// TestManual compares the manual page with the commands.
func TestManual(t *testing.T) {
	const file = "../../docs/man/thinsnap.1"
	page := manual((&app{}).command())
	if *update {
		require.NoError(t, os.WriteFile(file, []byte(page), 0o644))
	}
	written, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, page, string(written), "go generate ./cmd/thinsnap rewrites the file")
}

// manual returns the text of thinsnap(1).
func manual(root *cli.Command) string {
	p := roff.New(root.Name, 1, root.Usage)
	p.Section("SYNOPSIS")
	p.Paragraph(roff.Bold(root.Name) + " [" + roff.Italic("global options") + "] " + roff.Italic("command") +
		" [" + roff.Italic("options") + "] [" + roff.Italic("arguments") + "]")
	p.Section("DESCRIPTION")
	description, exitCodes, _ := strings.Cut(root.Description, "\n\nExit codes: ")
	paragraphs(p, description)
	p.Section("GLOBAL OPTIONS")
	writeFlags(p, root.Flags)
	p.Item(roff.Bold("--help")+", "+roff.Bold("-h"), "Show help for the command, and exit.")
	p.Item(roff.Bold("--version")+", "+roff.Bold("-v"), "Print the version, and exit.")
	p.Section("COMMANDS")
	writeCommands(p, root.Name, root.Commands)
	p.Section("EXIT STATUS")
	for code := range strings.SplitSeq(strings.TrimSuffix(exitCodes, "."), ", ") {
		number, meaning, _ := strings.Cut(code, " ")
		p.Item(roff.Bold(number), roff.Escape(meaning))
	}
	p.Section("FILES")
	defaults := config.Default()
	p.Item(roff.Escape(config.DefaultPath), "The configuration. It need not exist.")
	p.Item(roff.Escape(defaults.Root), "The store and, in mode "+roff.Escape(config.ModeLoop)+", the files of the pool.")
	p.Item(roff.Escape(defaults.Address), "The socket that containerd talks to.")
	p.Item(roff.Escape(defaults.AdminAddress), "The socket that the commands talk to.")
	p.Section("SEE ALSO")
	p.Paragraph(seeAlso("thinsnap-config.toml(5)", "containerd(8)", "ctr(8)", "dmsetup(8)", "thin_check(8)", "thin_repair(8)"))
	return p.String()
}

func writeCommands(p *roff.Page, name string, commands []*cli.Command) {
	for _, c := range commands {
		full := name + " " + c.Name
		switch {
		case c.Hidden:
		case len(c.Commands) > 0 && len(c.Flags) == 0:
			writeCommands(p, full, c.Commands)
			if c.Description != "" {
				p.Literal(c.Description)
			}
		default:
			writeCommand(p, full, c)
			writeCommands(p, full, c.Commands)
		}
	}
}

func writeCommand(p *roff.Page, full string, c *cli.Command) {
	if len(c.Flags) > 0 {
		full += " [options]"
	}
	p.Part(strings.TrimSpace(full + " " + c.ArgsUsage))
	p.Paragraph(sentence(c.Usage))
	paragraphs(p, c.Description)
	writeFlags(p, c.Flags)
}

func paragraphs(p *roff.Page, text string) {
	for paragraph := range strings.SplitSeq(text, "\n\n") {
		if paragraph != "" {
			p.Paragraph(roff.Escape(paragraph))
		}
	}
}

func writeFlags(p *roff.Page, flags []cli.Flag) {
	for _, f := range flags {
		doc, ok := f.(cli.DocGenerationFlag)
		if !ok {
			continue
		}
		tag := roff.Bold("--" + f.Names()[0])
		if value := placeholder(f); value != "" {
			tag += " " + roff.Italic(value)
		}
		text := sentence(strings.ReplaceAll(doc.GetUsage(), "`", ""))
		if standard := defaultText(f); standard != "" {
			text += " Default: " + roff.Escape(standard) + "."
		}
		p.Item(tag, text)
	}
}

// defaultText returns a flag's default for the manual page, or "".
func defaultText(f cli.Flag) string {
	switch f := f.(type) {
	case *cli.StringFlag:
		return cmp.Or(f.DefaultText, f.Value)
	case *cli.DurationFlag:
		return f.Value.String()
	}
	return ""
}

func sentence(usage string) string {
	return roff.Escape(strings.ToUpper(usage[:1]) + usage[1:] + ".")
}

func seeAlso(pages ...string) string {
	for i, page := range pages {
		name, section, _ := strings.Cut(page, "(")
		pages[i] = roff.Bold(name) + "(" + section
	}
	return strings.Join(pages, ", ")
}
