package clients

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/metadata"
)

// fromOther reports whether a snapshot is of an earlier client that did not tell client.Installation, the last told
// one. Snapshots from before clients were recorded count as of that installation; if the client cannot be seen, all
// snapshots do.
func fromOther(client metadata.ClientRecord, s metadata.Snapshot) bool {
	if s.Client == 0 || s.Client == client.Number || s.Client < client.AcceptedBefore || unseen(client) {
		return false
	}
	told, ok := client.InstallationOf(s.Client)
	return !ok || told != client.Installation
}

// mayKeep reports whether some snapshots of earlier clients may be kept. Its cost does not depend on their number.
func mayKeep(client metadata.ClientRecord) bool {
	if len(client.Protections) > 0 {
		return true
	}
	next := max(1, client.AcceptedBefore) // the first client not known to be of the same installation
	for _, t := range client.Told {
		if t.First <= next && next <= t.Last && t.Installation == client.Installation {
			next = t.Last + 1
		}
	}
	return next < client.Number && !unseen(client)
}

// mayRelease reports whether the client may take a kept snapshot whose whole key it uses. Layers are named by digest,
// and numbers begin with 1: so another database can have the same key. The client may have another database if it
// told no installation, or has its snapshots in another key space.
func (r *Registry) mayRelease(key string) bool {
	switch {
	case unseen(r.client):
		return true
	case r.identity.progress >= told:
		return r.identity.elsewhere == ""
	default:
		_, _, name, _ := SplitKey(key)
		return r.client.Installation == "" && r.identity.progress == silent && !isDigest(name)
	}
}

// isDigest reports whether a name is a layer's, which containerd and BuildKit derive from the content.
func isDigest(name string) bool { return strings.HasPrefix(name, "sha256:") }

// findElsewhere returns the name of another client whose key space has snapshots of an installation, or "". Snapshots
// of clients that told none count as of the last told installation.
func (r *Registry) findElsewhere(ctx context.Context, installation string) (name string, err error) {
	err = r.store.View(ctx, func(tx *metadata.Tx) error {
		for _, space := range append(tx.KeySpaces(), "") {
			if space == r.space || name != "" {
				continue
			}
			client, err := tx.Client(space)
			if errdefs.IsNotFound(err) || err == nil && !hasTold(client, installation) {
				continue
			}
			if err != nil {
				return err
			}
			if err := tx.ForEachIn(space, func(s metadata.Snapshot) error {
				told, ok := client.InstallationOf(s.Client)
				if told == installation || !ok && client.Installation == installation {
					name = cmp.Or(space, "default")
				}
				return nil
			}); err != nil {
				return err
			}
		}
		return nil
	})
	return name, err
}

// hasTold reports whether a client of a key space told an installation.
func hasTold(client metadata.ClientRecord, installation string) bool {
	return client.Installation == installation ||
		slices.ContainsFunc(client.Told, func(t metadata.Told) bool { return t.Installation == installation })
}
