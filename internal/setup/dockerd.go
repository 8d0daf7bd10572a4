package setup

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/devmapper/program"
	"github.com/thinsnap/thinsnap/internal/setup/journal"
)

// A Dockerd is the Docker daemon of this machine. It need not run.
type Dockerd struct {
	Executable string
	// Config is the absolute path of its daemon.json, which may be missing.
	Config string
	// Containerd is the value of the option --containerd, a socket; "" without it.
	Containerd string
	// StorageDriver is the storage driver on the command line, or "".
	StorageDriver string
	Unit          string
	Source        string
}

const (
	dockerdName   = "dockerd"
	dockerUnit    = "docker.service"
	dockerdConfig = "/etc/docker/daemon.json"

	storageDriver = "storage-driver"
	imageStore    = "containerd-snapshotter"
)

// FindDockerd returns the Docker daemon that runs as root, or otherwise that of the unit
// docker.service. It fails with errdefs.ErrNotFound if the machine has none, and with errors of the
// operating system.
func FindDockerd() (Dockerd, error) { return host{"/"}.dockerd() }

func (h host) dockerd() (Dockerd, error) {
	all, err := h.programs(dockerdName)
	if err != nil {
		return Dockerd{}, err
	}
	for _, p := range all {
		d := Dockerd{Executable: p.exe, Unit: p.unit, Source: fmt.Sprintf("process %d", p.pid)}
		d.parse(p.args, p.cwd)
		return d, nil
	}
	args, file, err := h.execStart(dockerUnit)
	if errors.Is(err, fs.ErrNotExist) {
		return Dockerd{}, fmt.Errorf("there is no daemon of Docker: no process dockerd, and no unit %s: install Docker: %w",
			dockerUnit, errdefs.ErrNotFound)
	}
	if err != nil {
		return Dockerd{}, err
	}
	d := Dockerd{Executable: args[0], Unit: dockerUnit, Source: file}
	d.parse(args, "/")
	return d, nil
}

// parse reads the options of a command line.
func (d *Dockerd) parse(args []string, dir string) {
	d.Config = dockerdConfig
	for name, value := range options(args, map[string]string{
		"config-file": "config-file", "containerd": "containerd", storageDriver: storageDriver, "s": storageDriver,
	}) {
		switch name {
		case "config-file":
			d.Config = value
			if !filepath.IsAbs(value) {
				d.Config = filepath.Join(dir, value)
			}
		case "containerd":
			d.Containerd = strings.TrimPrefix(value, "unix://")
		case storageDriver:
			d.StorageDriver = value
		}
	}
}

// Uses returns the containerd that Docker uses. Without --containerd, that is the one at the
// default address if it runs, and otherwise one that dockerd starts. Errors are those of Only. A
// containerd that dockerd starts is errdefs.ErrFailedPrecondition, because dockerd writes its
// configuration at each start.
func (d Dockerd) Uses(all []Containerd) (Containerd, error) {
	for _, c := range all {
		if c.Kind == Docker && d.Containerd == "" {
			return c, fmt.Errorf("dockerd runs its own containerd (%s), and writes its configuration at each start: "+
				"install containerd as a service, and restart Docker, which then uses that: %w", c.Source,
				errdefs.ErrFailedPrecondition)
		}
	}
	for _, c := range all {
		if c.Address == d.Containerd {
			return c, nil
		}
	}
	return Only(all, System)
}

// Plan returns the change of daemon.json that makes Docker use a snapshotter: containerd's image
// store, with the snapshotter as storage driver. dockerd validates the planned file.
//
// Errors are errdefs.ErrFailedPrecondition if the command line has another storage driver,
// ErrInvalidArgument for a file that dockerd cannot read or rejects, and ErrNotImplemented for
// Docker before 24, or for a file form that cannot be changed.
func (d Dockerd) Plan(ctx context.Context, snapshotter string) (journal.File, error) {
	f := journal.File{Path: d.Config}
	text, err := os.ReadFile(d.Config)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	if err == nil {
		f.Before = append([]byte{}, text...)
	}
	if d.StorageDriver != "" && d.StorageDriver != snapshotter {
		return f, fmt.Errorf("dockerd has --%s=%s on its command line (%s), and does not start if %s has one, too: remove "+
			"it there: %w", storageDriver, d.StorageDriver, d.Source, d.Config, errdefs.ErrFailedPrecondition)
	}
	after, err := withStore(text, snapshotter)
	if err != nil {
		return f, fmt.Errorf("%s: %w", d.Config, err)
	}
	f.After = after
	if f.Unchanged() {
		return f, nil
	}
	return f, d.check(ctx, after)
}

// withStore sets the two keys in the text of a daemon.json.
func withStore(text []byte, snapshotter string) ([]byte, error) {
	if len(bytes.TrimSpace(text)) == 0 {
		text = []byte("{\n}\n")
	}
	var doc map[string]any
	if err := json.Unmarshal(text, &doc); err != nil || doc == nil {
		return nil, fmt.Errorf("not a JSON object: correct it, because dockerd cannot read it either: %w",
			errors.Join(err, errdefs.ErrInvalidArgument))
	}
	features, isTable := doc["features"].(map[string]any)
	if doc["features"] != nil && !isTable {
		return nil, fmt.Errorf("features must be an object: correct it: %w", errdefs.ErrInvalidArgument)
	}
	var err error
	if doc[storageDriver] != snapshotter {
		if text, err = setMember(text, nil, storageDriver, snapshotter); err != nil {
			return nil, err
		}
		doc[storageDriver] = snapshotter
	}
	switch {
	case features[imageStore] == true:
	case features == nil:
		doc["features"] = map[string]any{imageStore: true}
		text, err = setMember(text, nil, "features", doc["features"])
	default:
		features[imageStore] = true
		text, err = setMember(text, []string{"features"}, imageStore, true)
	}
	if err != nil {
		return nil, err
	}
	var got map[string]any
	if err := json.Unmarshal(text, &got); err != nil || !reflect.DeepEqual(got, doc) {
		return nil, fmt.Errorf("this version of thinsnap cannot change a file of this form: set %q to "+
			"%q, and %q in features to true: %w", storageDriver, snapshotter, imageStore, errdefs.ErrNotImplemented)
	}
	return text, nil
}

// check has dockerd validate the planned file.
func (d Dockerd) check(ctx context.Context, text []byte) (err error) {
	ctx = program.WithDirectories(ctx, filepath.Dir(d.Executable))
	out, err := program.Run(ctx, program.Command{Args: []string{filepath.Base(d.Executable), "--version"}})
	if err != nil {
		return err
	}
	var major int
	if _, err := fmt.Sscanf(string(out.Out), "Docker version %d.", &major); err != nil || major < 24 {
		return fmt.Errorf("%s is %q: thinsnap needs Docker 24 or newer, whose image store is containerd's: %w", d.Executable,
			strings.TrimSpace(string(out.Out)), errdefs.ErrNotImplemented)
	}
	f, err := os.CreateTemp("", "thinsnap-daemon-*.json")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	_, err = f.Write(text)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	_, err = program.Run(ctx, program.Command{
		Args: []string{filepath.Base(d.Executable), "--validate", "--config-file", f.Name()},
	})
	if err != nil {
		return fmt.Errorf("dockerd rejects the planned %s: %w: %w", d.Config, withoutSecrets(err), errdefs.ErrInvalidArgument)
	}
	return nil
}
