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

// clientOf returns a containerd's client of thinsnap: the one with the name of its kind, or the
// default client. If a containerd of the other kind is the default client, it returns a new client.
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
			a.printf("thinsnap gets a further client %q with its own socket, because %s is the default client.\n", kind, other)
			client = config.Client{Name: string(kind), Address: filepath.Join(filepath.Dir(cfg.Address), string(kind)+".sock")}
			isNew = true
		}
	}
	return client, isNew, nil
}

// setUpClient adds the entry of a client to thinsnap's configuration, after the changes for the
// disk. It fails with errdefs.ErrNotImplemented if the form of the file allows no further entry at
// its end.
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
		return nil, fmt.Errorf("%s: this version of thinsnap cannot add an entry to a file of this form: add one to "+
			"clients with name %q and address %q by hand, and run the command again: %w", f.Path, client.Name, client.Address,
			errdefs.ErrNotImplemented)
	}
	return files, nil
}
