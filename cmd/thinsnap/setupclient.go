package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v3"

	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/setup"
	"github.com/thinsnap/thinsnap/internal/setup/journal"
)

// clientOf returns which client of thinsnap a containerd is: the one with the name of its kind, else the default one.
// If a containerd of the other kind is the default one, it is a client that the configuration does not have yet.
func (a *app) clientOf(cfg config.Config, kind setup.Kind) (client config.Client, isNew bool, err error) {
	for _, has := range cfg.Clients {
		if has.Name == string(kind) {
			return has, false, nil
		}
	}
	client = config.Client{Name: config.DefaultClient, Address: cfg.Address}
	for _, other := range []setup.Kind{setup.System, setup.K3s} {
		isOwn := func(has config.Client) bool { return has.Name == string(other) }
		if other == kind || slices.ContainsFunc(cfg.Clients, isOwn) {
			continue
		}
		record, err := journal.Open(a.setupRecord(string(other)))
		if err != nil {
			return config.Client{}, false, err
		}
		if !record.Empty() {
			a.printf("thinsnap gets a further client %q with a socket of its own, because %s is the default one.\n", kind, other)
			client = config.Client{Name: string(kind), Address: filepath.Join(filepath.Dir(cfg.Address), string(kind)+".sock")}
			isNew = true
		}
	}
	return client, isNew, nil
}

// setUpClient adds the entry of a client to thinsnap's configuration, which the changes of the disk may be first of. It
// fails with NotImplemented if the file has a form that takes no further entry at its end.
func setUpClient(c *cli.Command, files []journal.File, client config.Client) ([]journal.File, error) {
	if len(files) == 0 {
		f := journal.File{Path: c.String("config")}
		text, err := os.ReadFile(f.Path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		f.After = []byte("version = 1\n")
		if err == nil {
			f.Before = append([]byte{}, text...)
			f.After = f.Before
		}
		files = []journal.File{f}
	}
	f := &files[0]
	entry := fmt.Sprintf("\n[[clients]]\nname = %q\naddress = %q\n", client.Name, client.Address)
	if text := f.After; len(text) > 0 && text[len(text)-1] != '\n' {
		entry = "\n" + entry
	}
	f.After = fmt.Appendf(nil, "%s%s", f.After, entry)
	cfg, err := config.Parse(f.After)
	if err != nil || !slices.Contains(cfg.Clients, client) {
		return nil, fmt.Errorf("%s: its form is one in which this version of thinsnap cannot add an entry: add one to "+
			"clients with name %q and address %q by hand, and run the command again: %w", f.Path, client.Name, client.Address,
			errdefs.ErrNotImplemented)
	}
	return files, nil
}
