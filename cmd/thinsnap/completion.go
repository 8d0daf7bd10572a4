package main

import (
	"context"
	"embed"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/urfave/cli/v3"

	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/clients"
)

// completionScripts has one script for each shell. The cli library's scripts are not safe: bash
// expands their candidates, and a snapshot's key can be a command. After a "--" they even run the
// command line.
//
//go:embed completion
var completionScripts embed.FS

// completionTime limits the wait for the daemon.
const completionTime = time.Second

func (a *app) completionCommand() *cli.Command {
	group := &cli.Command{
		Name:  "completion",
		Usage: "print a shell completion script",
		Description: "bash: source <(thinsnap completion bash), with the package bash-completion\n" +
			"zsh:  source <(thinsnap completion zsh), after compinit\n" +
			"fish: thinsnap completion fish | source\n\n" +
			"Snapshot keys are completed only for root, because the daemon answers only root.",
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		group.Commands = append(group.Commands, &cli.Command{
			Name:  shell,
			Usage: "print the script for " + shell,
			Action: withArgs(0, 0, func(context.Context, *cli.Command) error {
				script, err := completionScripts.ReadFile("completion/thinsnap." + shell)
				if err == nil {
					_, err = a.out.Write(script)
				}
				return err
			}),
		})
	}
	return group
}

// completeCommand is the command that the scripts call. Its arguments are the words between the
// program's name and the cursor; the last may be empty. It prints one line for each candidate, with
// a description after a tab, or :files or :directories.
func (a *app) completeCommand() *cli.Command {
	return &cli.Command{
		Name:            "complete",
		Usage:           "print completions of a command line",
		ArgsUsage:       "WORD...",
		Hidden:          true,
		HideHelp:        true,
		SkipFlagParsing: true,
		Action: func(ctx context.Context, c *cli.Command) error {
			words := c.Args().Slice()
			if len(words) == 0 {
				return usagef("no word to complete")
			}
			last := len(words) - 1
			at := locate(c.Root(), words[:last])
			var b strings.Builder
			for _, line := range at.candidates(ctx, words[last]) {
				b.WriteString(line + "\n")
			}
			_, err := io.WriteString(a.out, b.String())
			return err
		},
	}
}

// position is the cursor's position on a command line.
type position struct {
	command *cli.Command
	flags   []cli.Flag // allowed here
	args    int        // number of arguments before the cursor
	awaits  cli.Flag   // the flag that expects a value here, or nil
	noFlags bool       // after "--"
}

// locate parses the words before the cursor. It sets the flags of the root command that select the
// daemon.
func locate(root *cli.Command, words []string) position {
	at := position{command: root, flags: slices.Clone(root.Flags)}
	for _, word := range words {
		switch sub := at.command.Command(word); {
		case at.awaits != nil:
			at.value(root, word)
		case at.noFlags:
			at.args++
		case word == "--":
			at.noFlags = true
		case strings.HasPrefix(word, "-") && word != "-":
			name, value, given := strings.Cut(word, "=")
			if at.awaits = at.flag(name); given && at.awaits != nil {
				at.value(root, value)
			}
		case sub != nil && at.args == 0:
			at.command, at.flags = sub, slices.Concat(sub.Flags, slices.DeleteFunc(at.flags, isLocal))
		default:
			at.args++
		}
	}
	return at
}

// isLocal reports whether the flag does not apply to subcommands.
func isLocal(f cli.Flag) bool {
	local, ok := f.(cli.LocalFlag)
	return ok && local.IsLocal()
}

// flag returns the named flag if it takes a value, or nil. The name includes the dashes.
func (at *position) flag(word string) cli.Flag {
	for _, f := range at.flags {
		doc, ok := f.(cli.DocGenerationFlag)
		for _, name := range f.Names() {
			if ok && name == strings.TrimLeft(word, "-") && doc.TakesValue() {
				return f
			}
		}
	}
	return nil
}

// value consumes the value of the flag that expects one.
func (at *position) value(root *cli.Command, value string) {
	if name := at.awaits.Names()[0]; name == "config" || name == "admin-address" {
		_ = root.Set(name, value) // a request to the daemon reports an error
	}
	at.awaits = nil
}

// argument returns the placeholder of the expected argument, or "".
func (at *position) argument() string {
	takes := strings.Fields(at.command.ArgsUsage)
	if len(takes) == 0 {
		return ""
	}
	last := strings.Trim(takes[len(takes)-1], "[]")
	switch repeated, repeats := strings.CutSuffix(last, "..."); {
	case repeats && at.args >= len(takes)-1:
		return repeated
	case at.args >= len(takes):
		return ""
	}
	return strings.Trim(takes[at.args], "[]")
}

// candidates returns the completions of the current word, one a line.
func (at *position) candidates(ctx context.Context, current string) []string {
	name, _, given := strings.Cut(current, "=")
	var found []string
	switch f := at.flag(name); {
	case at.awaits != nil:
		found = values(ctx, at.command, placeholder(at.awaits))
	case strings.HasPrefix(current, "-") && !at.noFlags && given:
		if f == nil {
			return nil
		}
		for _, value := range values(ctx, at.command, placeholder(f)) {
			if !strings.HasPrefix(value, ":") {
				value = name + "=" + value
			}
			found = append(found, value)
		}
	case strings.HasPrefix(current, "-") && !at.noFlags:
		found = flagNames(at.flags)
	default:
		if at.args == 0 {
			found = commandNames(at.command.Commands)
		}
		found = append(found, values(ctx, at.command, at.argument())...)
	}
	var matching []string
	for _, line := range found {
		if strings.HasPrefix(line, current) || line == completeFiles || line == completeDirectories {
			matching = append(matching, line)
		}
	}
	return matching
}

func flagNames(flags []cli.Flag) []string {
	var lines []string
	for _, f := range flags {
		if doc, ok := f.(cli.DocGenerationFlag); ok {
			lines = append(lines, fmt.Sprintf("--%s\t%s", f.Names()[0], strings.ReplaceAll(doc.GetUsage(), "`", "")))
		}
	}
	return lines
}

func commandNames(commands []*cli.Command) []string {
	var lines []string
	for _, c := range commands {
		if !c.Hidden && c.Name != "help" { // every command has --help
			lines = append(lines, c.Name+"\t"+c.Usage)
		}
	}
	return lines
}

// The shells complete these placeholders.
const (
	completeFiles       = ":files"
	completeDirectories = ":directories"
)

// placeholder returns the placeholder for a flag's value in its usage.
func placeholder(f cli.Flag) string {
	doc, ok := f.(cli.DocGenerationFlag)
	if !ok {
		return ""
	}
	return strings.Trim(regexp.MustCompile("`[^`]*`").FindString(doc.GetUsage()), "`")
}

// values returns the known values for a placeholder.
func values(ctx context.Context, c *cli.Command, placeholder string) []string {
	switch placeholder {
	case "FILE", "DAEMON.JSON", "SOCKET", "DISK":
		return []string{completeFiles}
	case "DIR":
		return []string{completeDirectories}
	case "LEVEL":
		return []string{"trace", "debug", "info", "warn", "error"}
	case "KEY":
		return keys(ctx, c)
	case "CONTAINER|KEY":
		return sources(ctx, c)
	}
	return nil
}

// sources returns the completions for a fork's source: the containers of the namespace, whose names
// mostly are those of their snapshots, and the keys of active snapshots.
func sources(ctx context.Context, c *cli.Command) []string {
	var containers, active []string
	for _, line := range keys(ctx, c) {
		key, kind, _ := strings.Cut(line, "\t")
		if kind != admin.KindActive {
			continue
		}
		active = append(active, line)
		namespace, _, name, ok := clients.SplitKey(ownKey(key))
		if ok && namespace == containerdNamespace(c) && identifiers.Validate(name) == nil {
			containers = append(containers, name+"\tcontainer")
		}
	}
	return append(containers, active...)
}

// keys returns the snapshot keys without special characters. It drops errors, because a completion
// cannot show them.
func keys(ctx context.Context, c *cli.Command) []string {
	ctx, cancel := context.WithTimeout(ctx, completionTime)
	defer cancel()
	snapshots, err := list(ctx, c)
	if err != nil {
		return nil
	}
	var lines []string
	for _, s := range snapshots {
		if printable(s.Key) == s.Key && !strings.HasPrefix(s.Key, "-") && !strings.HasPrefix(s.Key, ":") {
			lines = append(lines, s.Key+"\t"+s.Kind)
		}
	}
	return lines
}
