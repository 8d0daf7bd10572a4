package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v3"

	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/clients"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/fork"
	"github.com/thinsnap/thinsnap/metadata"
)

// forked is the JSON of "fork". The names are containerd's.
type forked struct {
	Namespace   string `json:"namespace"`
	Container   string `json:"container,omitempty"` // absent for a fork of a snapshot only
	Snapshotter string `json:"snapshotter"`
	Snapshot    string `json:"snapshot"`
}

func (a *app) forkCommand() *cli.Command {
	return &cli.Command{
		Name:      "fork",
		Usage:     "create a container or a snapshot with the present content of another one",
		ArgsUsage: "CONTAINER|KEY [NEW]",
		Description: "CONTAINER is a container of ctr: NEW gets a copy of its disk and of its metadata in containerd, and \"ctr\n" +
			"tasks start NEW\" runs it. The source keeps running. Processes and memory are not copied. KEY is a\n" +
			"snapshot, as \"thinsnap ls\" prints it: NEW is a snapshot with its content.\n\n" +
			"With --token there is no NEW: the command prints a token for one snapshot, to be used within a minute:\n" +
			"ctr run --snapshotter thinsnap --snapshotter-label containerd.io/snapshot/thinsnap/from=TOKEN IMAGE NEW",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "token", Usage: "print a token for one fork"},
			&cli.StringFlag{Name: "namespace", Usage: "find CONTAINER in containerd's namespace `NAME`",
				Sources: cli.EnvVars("CONTAINERD_NAMESPACE"), DefaultText: "$CONTAINERD_NAMESPACE, or " + namespaces.Default},
			&cli.StringFlag{Name: "containerd", Usage: "talk to containerd on this `SOCKET`",
				Sources: cli.EnvVars("CONTAINERD_ADDRESS"), DefaultText: "$CONTAINERD_ADDRESS, or " + defaults.DefaultAddress},
			jsonFlag(),
		},
		Action: withArgs(1, 2, a.fork),
	}
}

func (a *app) fork(ctx context.Context, c *cli.Command) (err error) {
	of, name, token := c.Args().Get(0), c.Args().Get(1), c.Bool("token")
	switch {
	case token && c.Args().Len() > 1:
		return usagef("--token does not take the name of a fork: %q", name)
	case !token && name == "":
		return usagef("missing argument; usage: %s [options] %s", c.FullName(), c.ArgsUsage)
	}
	ctx, release := untilSignal(ctx)
	defer release()
	client, err := newClient(c)
	if err != nil {
		return err
	}
	containerd, err := fork.Connect(containerdAddress(c))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, containerd.Close()) }()

	source, key := fork.Container{}, of
	isKey := strings.Contains(of, "/") // a container's name has no slash
	if !isKey {
		source, err = containerd.Container(ctx, containerdNamespace(c), of)
		switch {
		case errdefs.IsUnavailable(err):
			return fmt.Errorf("%w; --containerd names another socket", err)
		case errdefs.IsNotFound(err):
			return fmt.Errorf("%w; --namespace names another namespace", err)
		case err != nil:
			return err
		}
		if key, err = keyOf(ctx, client, source, containerdAddress(c)); err != nil {
			return err
		}
	}
	if token {
		issued, err := client.Fork(ctx, key)
		if err != nil {
			return err
		}
		if !isKey && issued.Snapshotter != source.Snapshotter { // thinsnap's snapshot belongs to another container
			return fork.WrongSnapshotter(source, issued.Snapshotter)
		}
		return a.printToken(c, issued)
	}
	wait := a.waiting("forking " + printable(of))
	done := forked{Snapshot: name}
	issue := func(ctx context.Context) (fork.Ticket, error) {
		ticket, err := issueTicket(ctx, client, key)
		done.Snapshotter = ticket.Snapshotter
		return ticket, err
	}
	if isKey {
		done.Namespace, err = forkSnapshot(ctx, containerd, key, name, issue)
	} else {
		done.Namespace, done.Container = source.Namespace, name
		err = containerd.ForkContainer(ctx, source, name, issue)
	}
	wait()
	if err != nil {
		return fmt.Errorf("fork %s: %w", printable(of), err)
	}
	return a.printFork(c, &done)
}

// keyOf returns thinsnap's key of a container's snapshot. Several clients of thinsnap may have a
// snapshot with that key: the right client is the one that listens on containerd's socket.
func keyOf(ctx context.Context, client *admin.Client, source fork.Container, address string) (string, error) {
	all, err := client.Snapshots(ctx, false)
	if err != nil {
		return "", err
	}
	of := make(map[string][]string) // by client
	for i := range all {
		if !all[i].Kept {
			of[all[i].Client] = append(of[all[i].Client], all[i].Key)
		}
	}
	newest := make(map[string]string)
	for name, keys := range of {
		own := fork.NewestKey(func(yield func(string) bool) {
			for _, key := range keys {
				if !yield(ownKey(key)) {
					return
				}
			}
		}, source.Namespace, source.SnapshotKey)
		if own != "" {
			newest[name] = metadata.ShowKey(metadata.KeyPrefix(config.KeySpace(name)) + own)
		}
	}
	if len(newest) > 1 {
		name, err := listener(ctx, client, address)
		if err != nil {
			return "", err
		}
		newest = map[string]string{name: newest[name]}
	}
	for _, key := range newest {
		if key != "" {
			return key, nil
		}
	}
	return "", fmt.Errorf("thinsnap does not have the snapshot %q of container %q (snapshotter %q): %w",
		source.SnapshotKey, source.ID, source.Snapshotter, errdefs.ErrNotFound)
}

// listener returns the client of thinsnap whose process listens on a socket.
func listener(ctx context.Context, client *admin.Client, address string) (string, error) {
	process, err := clients.Listener(ctx, strings.TrimPrefix(address, "unix://"))
	if err != nil {
		return "", err
	}
	info, err := client.Info(ctx)
	if err != nil {
		return "", err
	}
	for _, c := range append(info.Clients, info.Client) {
		if c.Alive && c.PID == process.PID {
			return c.Name, nil
		}
	}
	return "", fmt.Errorf("several clients of thinsnap have such a snapshot, and %v, which listens on %s, is not one of "+
		"them: use the snapshot's key in place of the container: %w", process, address, errdefs.ErrFailedPrecondition)
}

// ownKey returns the key by which a client knows its snapshot.
func ownKey(shown string) string {
	stored, err := metadata.ReadKey(shown)
	if err != nil {
		return shown
	}
	_, key := metadata.SplitKey(stored)
	return key
}

// issueTicket gets a token for a fork of a snapshot from the daemon. The ticket also has the
// snapshot's parent and labels, which the fork gets, too.
func issueTicket(ctx context.Context, client *admin.Client, key string) (fork.Ticket, error) {
	source, err := client.Inspect(ctx, key)
	if err != nil {
		return fork.Ticket{}, err
	}
	_, _, parent, ok := clients.SplitKey(ownKey(source.Parent))
	if !ok && source.Parent != "" {
		return fork.Ticket{}, fmt.Errorf("the parent %q is not a snapshot of containerd's: %w", source.Parent,
			errdefs.ErrFailedPrecondition)
	}
	issued, err := client.Fork(ctx, key)
	return fork.Ticket{
		Label: issued.Label, Token: issued.Token, Snapshotter: issued.Snapshotter, Parent: parent, Labels: source.Labels,
	}, err
}

// forkSnapshot forks a snapshot without a container, and returns its namespace.
func forkSnapshot(
	ctx context.Context, containerd *fork.Containerd, key, name string, issue func(context.Context) (fork.Ticket, error),
) (string, error) {
	namespace, _, _, ok := clients.SplitKey(ownKey(key))
	if !ok {
		return "", fmt.Errorf("it is not a snapshot of containerd's: %w", errdefs.ErrFailedPrecondition)
	}
	ticket, err := issue(ctx)
	if err != nil {
		return namespace, err
	}
	return namespace, containerd.ForkSnapshot(ctx, namespace, ticket, name)
}

func containerdAddress(c *cli.Command) string {
	if c.IsSet("containerd") {
		return c.String("containerd")
	}
	return defaults.DefaultAddress
}

func containerdNamespace(c *cli.Command) string {
	if c.IsSet("namespace") {
		return c.String("namespace")
	}
	return namespaces.Default
}

func (a *app) printToken(c *cli.Command, issued admin.Fork) error {
	if c.Bool("json") {
		return printJSON(a.out, issued)
	}
	_, err := fmt.Fprintln(a.out, issued.Token)
	return err
}

// printFork prints the commands for a fork. Names need no shell quotes: containerd allows only
// letters, digits and "._-".
func (a *app) printFork(c *cli.Command, done *forked) error {
	if c.Bool("json") {
		return printJSON(a.out, done)
	}
	ctr := "ctr --namespace " + done.Namespace
	if address := containerdAddress(c); address != defaults.DefaultAddress {
		ctr += " --address " + address
	}
	if done.Container == "" {
		ctr += " snapshots --snapshotter " + done.Snapshotter
		return printRows(a.out, []row{
			{"Snapshot", done.Snapshot},
			{" Mount It", fmt.Sprintf("%s mounts DIRECTORY %s", ctr, done.Snapshot)},
			{" Remove It", fmt.Sprintf("%s rm %s", ctr, done.Snapshot)},
		})
	}
	return printRows(a.out, []row{
		{"Container", done.Container},
		{" Start It", fmt.Sprintf("%s tasks start %s", ctr, done.Container)},
		{" Remove It", fmt.Sprintf("%s containers rm %s", ctr, done.Container)},
	})
}
