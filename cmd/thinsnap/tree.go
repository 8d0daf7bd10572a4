package main

import (
	"context"

	"github.com/urfave/cli/v3"
)

// snapshotTree is the JSON of "tree".
type snapshotTree struct {
	Snapshots []*node `json:"snapshots"` // without a parent in the list
}

// node is a snapshot with its children.
type node struct {
	owned
	Children []*node `json:"children"`
}

func (a *app) treeCommand() *cli.Command {
	return &cli.Command{
		Name:  "tree",
		Usage: "show the snapshots as a tree, with their used, shared and exclusive space",
		Flags: []cli.Flag{jsonFlag(), noTruncFlag()},
		Action: withArgs(0, 0, func(ctx context.Context, c *cli.Command) error {
			snapshots, err := a.listOwned(ctx, c)
			if err != nil {
				return err
			}
			roots := forest(snapshots)
			if c.Bool("json") {
				return printJSON(a.out, snapshotTree{roots})
			}
			lines := [][]string{{"SNAPSHOT", "KIND", "DEVICE", "USED", "SHARED", "EXCLUSIVE", "BELONGS TO"}}
			drawn := treeWriter{key: a.keyWriter(c), colour: a.colour}
			for _, root := range roots {
				lines = drawn.append(lines, root, "", "")
			}
			return a.printTable(lines, c.Bool("no-trunc"))
		}),
	}
}

// forest arranges snapshots below their parents. A snapshot whose parent is not in the list is a
// root.
func forest(snapshots []owned) []*node {
	nodes := make(map[string]*node, len(snapshots))
	for _, s := range snapshots {
		nodes[s.Key] = &node{owned: s, Children: []*node{}}
	}
	roots := []*node{}
	for _, s := range snapshots {
		if parent := nodes[s.Parent]; parent != nil {
			parent.Children = append(parent.Children, nodes[s.Key])
			continue
		}
		roots = append(roots, nodes[s.Key])
	}
	return roots
}

type treeWriter struct {
	key    func(string) string
	colour palette
}

// append appends the lines of a node. Its own line begins with head, those of its descendants with
// indent.
func (w treeWriter) append(lines [][]string, n *node, head, indent string) [][]string {
	lines = append(lines, []string{
		w.colour.dim(head) + w.key(n.Key), w.colour.kind(n.Kind), deviceID(n.DeviceID), sizeIfKnown(n.Used),
		sizeIfKnown(n.Shared), sizeIfKnown(n.Exclusive), ownerText(n.Owner),
	})
	for i, child := range n.Children {
		branch, below := branches(i == len(n.Children)-1)
		lines = w.append(lines, child, indent+branch, indent+below)
	}
	return lines
}

// branches returns the lines drawn to a child, and past it to the next child.
func branches(last bool) (branch, below string) {
	if last {
		return "└── ", "    "
	}
	return "├── ", "│   "
}
