package daemon

import (
	"context"
	"errors"
	"path"
	"strings"
	"unicode/utf8"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/continuity/fs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/rootdir"
	"github.com/thinsnap/thinsnap/internal/rpc"
	"github.com/thinsnap/thinsnap/metadata"
)

// Comparer returns the comparer for containerd's diff service. It works until Close.
func (d *Daemon) Comparer() diff.Comparer { return d.differ }

// CouldBeOurs reports whether a mount's source looks like that of a snapshot of a daemon with this
// configuration.
func CouldBeOurs(c config.Config, m mount.Mount) bool {
	return strings.HasPrefix(m.Source, devmapper.NodePath(c.Pool.Name)+"-snap-") ||
		strings.HasPrefix(m.Source, rootdir.Mounts(c.Root)+"/")
}

// errCallerUnseen is returned if thinsnap cannot see the calling process.
var errCallerUnseen = errors.New("the calling process is not visible, so its content store is unknown: " +
	"set diff.containerd")

// connectCaller connects to the containerd that calls.
func (d *Daemon) connectCaller(ctx context.Context) (conn *grpc.ClientConn, release func(), err error) {
	if address := d.config.Diff.Containerd; address != "" {
		conn, err := grpc.NewClient("unix://"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return nil, nil, err
		}
		return conn, func() { _ = conn.Close() }, nil
	}
	caller := rpc.Caller(ctx)
	if caller.PID == 0 {
		return nil, nil, errCallerUnseen
	}
	return d.callers.Dial(ctx, caller)
}

// Diff implements admin.Backend.
func (d *Daemon) Diff(ctx context.Context, key string) (admin.Difference, error) {
	var rec metadata.Snapshot
	stored, err := metadata.ReadKey(key)
	if err == nil {
		err = d.store.View(ctx, func(tx *metadata.Tx) (err error) {
			rec, err = tx.Get(stored)
			return err
		})
	}
	if err != nil {
		return admin.Difference{}, err
	}
	difference := admin.Difference{Key: key, Parent: metadata.ShowKey(rec.Parent)}
	listing, changed, err := d.differ.List(ctx, rec.Parent, stored)
	if err != nil {
		return admin.Difference{}, err
	}
	difference.Level, difference.Changed, difference.Read = string(listing.Level), changed, listing.Read
	named := make(map[string]bool) // directories in the list
	var add func(kind, path string)
	add = func(kind, name string) {
		if dir := path.Dir(name); dir != "/" && !named[dir] {
			add(admin.ChangeChanged, dir)
		}
		named[name] = true
		change := admin.Change{Kind: kind, Path: name}
		if !utf8.ValidString(name) {
			change.PathBytes = []byte(name)
		}
		difference.Changes = append(difference.Changes, change)
	}
	for _, change := range listing.Changes {
		switch change.Kind {
		case fs.ChangeKindAdd:
			add(admin.ChangeAdded, change.Path)
		case fs.ChangeKindModify:
			add(admin.ChangeChanged, change.Path)
		case fs.ChangeKindDelete:
			add(admin.ChangeDeleted, change.Path)
		}
	}
	return difference, nil
}

func (d *Daemon) differStats() admin.Differ {
	s := d.differ.Stats()
	return admin.Differ{
		Running: s.Running, Inodes: s.Inodes, Walked: s.Walked, Left: s.Left, Failed: s.Failed, Cancelled: s.Cancelled,
		Mismatched: s.Mismatched, Changed: s.Changed, Read: s.Read, Written: s.Written,
	}
}
