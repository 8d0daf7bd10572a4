package plan

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/internal/adopt/builtin"
	"github.com/thinsnap/thinsnap/internal/adopt/metadb"
	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/rootdir"
	"github.com/thinsnap/thinsnap/metadata"
	"github.com/thinsnap/thinsnap/metadata/boltfile"
)

// A gatherer reads the input of a plan.
type gatherer struct {
	input
	ctx context.Context
}

func (g *gatherer) gather() {
	g.readNames()
	g.readBuiltin()
	g.checkConfiguration()
	g.checkRoot()
	g.checkPool()
}

func (g *gatherer) obstruct(subject, remedy, format string, args ...any) {
	g.obstacles = append(g.obstacles, Obstacle{Subject: subject, Text: fmt.Sprintf(format, args...), Remedy: remedy})
}

// fail records a file or a pool that cannot be read as an obstacle.
func (g *gatherer) fail(subject string, err error) {
	remedy := "see the message"
	switch {
	case errors.Is(err, boltfile.ErrLocked):
		g.obstruct(subject, "stop containerd", "%v", boltfile.ErrLocked)
		return
	case errdefs.IsNotFound(err), errors.Is(err, fs.ErrNotExist):
		remedy = "give root, root_path and pool_name as in containerd's configuration"
	case errdefs.IsNotImplemented(err):
		remedy = "use a newer thinsnap"
	case errdefs.IsDataLoss(err):
		remedy = "restore a backup of it, or remove everything and pull the images again"
	case errdefs.IsPermissionDenied(err), errors.Is(err, fs.ErrPermission):
		remedy = "run it as root"
	case errdefs.IsUnavailable(err):
		remedy = "try again when the disk is healthy"
	case errdefs.IsInvalidArgument(err):
		remedy = "give another name"
	}
	g.obstruct(subject, remedy, "%v", err)
}

func (g *gatherer) readNames() {
	o := g.options
	path := filepath.Join(o.ContainerdRoot, "io.containerd.metadata.v1.bolt", "meta.db")
	var err error
	if g.names, err = metadb.Read(g.ctx, path, o.From); err != nil {
		g.unread = true
		g.fail(path, err)
		return
	}
	switch taken, err := metadb.Read(g.ctx, path, o.Proxy); {
	case err != nil:
		g.fail(path, err)
	case !taken.Vacant():
		g.obstruct(path, "choose another name for the proxy (--name), or remove the objects with that name",
			"it names the snapshotter %q already", o.Proxy)
	}
	// The path is from getUUID in containerd's plugins/services/introspection/local.go.
	uuid, err := os.ReadFile(filepath.Join(o.ContainerdRoot, "io.containerd.grpc.v1.introspection", "uuid"))
	if err == nil {
		g.installation = string(uuid)
	}
}

func (g *gatherer) readBuiltin() {
	var err error
	if g.databases, err = builtin.Read(g.ctx, g.options.RootPath, g.options.Pool); err != nil {
		g.unread = true
		g.fail(g.options.RootPath, err)
	}
}

// checkConfiguration compares thinsnap's configuration with the built-in's.
func (g *gatherer) checkConfiguration() {
	remedy := "`thinsnap config from-containerd " + g.options.ContainerdConfig + " > " + config.DefaultPath +
		"` writes a configuration for it"
	const subject = "thinsnap's configuration"
	c := g.options.Config.Pool
	device := pool.DeviceName(c.Existing.Device)
	switch {
	case c.Mode != config.ModeExisting:
		g.obstruct(subject, remedy, "pool.mode is %q, and must be %q for the built-in's pool", c.Mode, config.ModeExisting)
	case !pool.SameName(device, g.options.Pool):
		g.obstruct(subject, remedy, "pool.existing.device is %q, and the built-in's pool is %q", c.Existing.Device,
			g.options.Pool)
	case c.Name == g.options.Pool:
		g.obstruct(subject, "set pool.name to another name, such as \"thinsnap\"",
			"pool.name is %q, the prefix of the names of the built-in's mapped devices", c.Name)
	}
}

// checkRoot checks thinsnap's root directory.
func (g *gatherer) checkRoot() {
	root := g.options.Config.Root
	if err := rootdir.Check(root); err != nil {
		g.fail(root, err)
		return
	}
	path := rootdir.Store(root)
	store, err := metadata.Open(path, metadata.Options{ReadOnly: true})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		g.checkRoom()
	case errors.Is(err, metadata.ErrLocked):
		g.obstruct(path, "stop thinsnap, and give it another root, or remove its pool with `thinsnap pool destroy`",
			"thinsnap is running with this store")
	default:
		if err == nil {
			_ = store.Close() // nothing was written
		}
		g.obstruct(path, "give thinsnap another root, or remove its pool with `thinsnap pool destroy`",
			"thinsnap already has a store there")
	}
}
