package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/urfave/cli/v3"
)

// TestCommandsInDocuments: the command line accepts each thinsnap command in a document. The tests
// of the commands run them.
func TestCommandsInDocuments(t *testing.T) {
	files, err := filepath.Glob("../../docs/*.md")
	require.NoError(t, err)
	code := regexp.MustCompile("(?m)`(?:sudo |kubectl [^`]* -- )?(thinsnap [^`|]+)[^`]*`|" +
		`^ +(?:sudo |kubectl .* -- )?(thinsnap [^#\n|>]+)`)
	seen := 0
	for _, file := range append(files, "../../README.md", "../../CONTRIBUTING.md", "../../CHANGELOG.md") {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, found := range code.FindAllStringSubmatch(string(text), -1) {
			for line := range strings.SplitSeq(found[1]+found[2], "&&") {
				words := strings.Fields(strings.TrimPrefix(strings.TrimSpace(line), "sudo "))
				if problem := unknownIn((&app{}).command(), words[1:]); problem != "" {
					t.Errorf("%s: %s: %s", filepath.Base(file), strings.Join(words, " "), problem)
				}
				seen++
			}
		}
	}
	require.Greater(t, seen, 50)
	require.Equal(t, "unknown command enlarge", unknownIn((&app{}).command(), []string{"pool", "enlarge"}))
	require.Equal(t, "unknown option --yaml", unknownIn((&app{}).command(), []string{"info", "--yaml"}))
}

// TestCommandsOfTheDoctor: the command line accepts each thinsnap command in a remedy of the
// doctor.
func TestCommandsOfTheDoctor(t *testing.T) {
	files, err := filepath.Glob("../../internal/doctor/*.go")
	require.NoError(t, err)
	seen := 0
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, found := range regexp.MustCompile(`(?:["`+"`"+`]|# [^"]*: )thinsnap ([a-z][^"`+"`"+`]*)["`+"`"+`]`).FindAllStringSubmatch(string(text), -1) {
			words := strings.Fields(found[1])
			require.Empty(t, unknownIn((&app{}).command(), words), "%s: thinsnap %s", file, found[1])
			seen++
		}
	}
	require.Greater(t, seen, 15)
}

// TestCommandsInManifests: the command line accepts each thinsnap command in the pods of
// deploy/kubernetes.
func TestCommandsInManifests(t *testing.T) {
	files, err := filepath.Glob("../../deploy/kubernetes/*/daemonset.yaml")
	require.NoError(t, err)
	list := regexp.MustCompile(`command: \["/usr/bin/thinsnap", (.*)\]`)
	seen := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, found := range list.FindAllStringSubmatch(string(text), -1) {
			words := strings.Split(strings.ReplaceAll(found[1], `"`, ""), ", ")
			require.Empty(t, unknownIn((&app{}).command(), words), found[1])
			seen++
		}
	}
	require.Equal(t, 7, seen)
	require.Empty(t, unknownIn((&app{}).command(), []string{"node", "install", "--containerd"}))
}

// unknownIn returns the first word that is neither a command nor an option at its position. A
// command without subcommands may have arguments.
func unknownIn(c *cli.Command, words []string) string {
	for _, word := range words {
		if name, isOption := strings.CutPrefix(strings.Trim(word, "[]"), "--"); isOption {
			name, _, _ = strings.Cut(name, "=")
			known := func(f cli.Flag) bool { return slices.Contains(f.Names(), name) }
			if !slices.ContainsFunc(c.Flags, known) && !slices.ContainsFunc(c.Root().Flags, known) && name != "help" && name != "version" {
				return "unknown option --" + name
			}
			continue
		}
		if len(c.Commands) == 0 {
			continue
		}
		i := slices.IndexFunc(c.Commands, func(sub *cli.Command) bool { return sub.Name == word })
		if i < 0 {
			return "unknown command " + word
		}
		c = c.Commands[i]
	}
	return ""
}
