package adopt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/adopt/builtin"
	"github.com/thinsnap/thinsnap/internal/adopt/metadb"
	"github.com/thinsnap/thinsnap/internal/adopt/plan"
	"github.com/thinsnap/thinsnap/internal/rootdir"
	"github.com/thinsnap/thinsnap/metadata"
)

// kernel is the state of a fixture's kernel.
type kernel struct {
	Skip      bool // the pool does not zero new blocks
	Devices   map[string]IdleDevice
	Withdrawn int
}

// kernelFile is outside of the fixture's directory, whose disk may be full.
func (s fixture) kernelFile() string { return s.dir + ".json" }

func (s fixture) kernel() (k kernel, err error) {
	b, err := os.ReadFile(s.kernelFile())
	if err == nil {
		err = json.Unmarshal(b, &k)
	}
	return k, err
}

func (s fixture) change(fn func(k *kernel)) error {
	k, err := s.kernel()
	if err != nil {
		return err
	}
	fn(&k)
	b, err := json.Marshal(k)
	if err != nil {
		return err
	}
	return os.WriteFile(s.kernelFile(), b, 0o600)
}

func (s fixture) setKernel(t *testing.T, k kernel) {
	t.Helper()
	b, err := json.Marshal(k)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(s.kernelFile(), b, 0o600))
}

// fake is the machine of a fixture.
type fake struct {
	fixture
	obstacle bool
	fail     string // the method that fails with errFake
	// If not nil, called in the middle of a run.
	onZero, onDeactivate func()
}

var errFake = fmt.Errorf("the kernel refuses: %w", errdefs.ErrUnavailable)

func (f fake) failure(method string) error {
	if f.fail == method {
		return errFake
	}
	return nil
}

// plan adopts all keys except those that end with "damaged".
func (f fake) plan(ctx context.Context, o plan.Options) (plan.Plan, error) {
	p := plan.Plan{Options: o, LeaveOut: metadb.LeaveOut{}}
	p.Options.LeaveOutDamaged = true
	dbs, err := builtin.Read(ctx, o.RootPath, o.Pool)
	if err != nil {
		return p, err
	}
	if p.Names, err = metadb.Read(ctx, newRecord(o).metaPath(), o.From); err != nil {
		return p, err
	}
	if f.obstacle {
		p.Obstacles = []plan.Obstacle{{Subject: "pool", Text: "is in the way", Remedy: "move it"}}
		return p, nil
	}
	p.Adoption = metadata.Adoption{
		Pool: metadata.PoolRecord{
			ID: "id", Mode: metadata.ModeExisting, Name: "thinsnap", BlockSize: 1 << 16, Complete: true, Created: now(),
			Existing: metadata.ExistingPool{MappedDevice: testPool},
		},
		Client: metadata.ClientRecord{Number: 1, Proxy: o.Proxy},
	}
	for _, s := range dbs.Snapshots {
		if strings.HasSuffix(s.Key, "damaged") {
			p.LeaveOut["default"] = map[string]bool{"damaged": true}
			p.Rows = append(p.Rows, plan.Row{Key: s.Key, Becomes: plan.LeftOut})
			continue
		}
		of := s
		if s.Kind == snapshots.KindView {
			of = dbs.Snapshots[slices.IndexFunc(dbs.Snapshots, func(p builtin.Snapshot) bool { return p.Key == s.Parent })]
		}
		d, _ := dbs.Device(of)
		p.Adoption.Snapshots = append(p.Adoption.Snapshots, metadata.Snapshot{
			Key: s.Key, Parent: s.Parent, Kind: s.Kind, Created: s.Created, Updated: s.Updated, VolumeID: d.ID, Size: d.Bytes,
			Filesystem: "ext4",
		})
		if s.Kind == snapshots.KindCommitted {
			p.Adoption.Pool.Existing.Adopted = append(p.Adoption.Pool.Existing.Adopted,
				metadata.AdoptedVolume{VolumeID: d.ID, Filesystem: "ext4", UUID: s.Key})
		}
		p.Rows = append(p.Rows, plan.Row{Key: s.Key, Becomes: plan.Adopted})
	}
	k, err := f.kernel()
	for name := range k.Devices {
		p.Idle = append(p.Idle, name)
	}
	if k.Skip {
		p.Reload = &plan.Reload{Table: "a table"}
	}
	return p, err
}

func (f fake) lock(context.Context, *metadata.Store) error { return f.failure("lock") }
func (f fake) resume(Pool) error                           { return f.failure("resume") }

func (f fake) idle(names []string) (all []IdleDevice, err error) {
	k, err := f.kernel()
	for _, name := range names {
		if d, found := k.Devices[name]; found {
			all = append(all, d)
		}
	}
	return all, errors.Join(err, f.failure("idle"))
}

func (f fake) deactivate(devices []IdleDevice) error {
	if err := f.failure("deactivate"); err != nil {
		return err
	}
	if f.onDeactivate != nil {
		f.onDeactivate()
	}
	return f.change(func(k *kernel) {
		for _, d := range devices {
			delete(k.Devices, d.Name)
		}
	})
}

func (f fake) activate(p Pool, devices []IdleDevice) (failed []string) {
	err := f.change(func(k *kernel) {
		for _, d := range devices {
			k.Devices[d.Name] = d
		}
	})
	if err != nil || p.MappedDevice != testPool {
		failed = append(failed, fmt.Sprint(p, err))
	}
	return failed
}

func (f fake) zero(context.Context, Pool) error {
	if err := f.failure("zero"); err != nil {
		return err
	}
	if f.onZero != nil {
		f.onZero()
	}
	return f.change(func(k *kernel) { k.Skip = false })
}

func (f fake) withdraw(context.Context, *metadata.Store) error {
	if err := f.failure("withdraw"); err != nil {
		return err
	}
	return f.change(func(k *kernel) { k.Withdrawn++ })
}

func (f fake) close() error { return nil }

// run adopts, and returns the reported steps.
func (s fixture) run(t *testing.T) (steps []string) {
	t.Helper()
	steps, err := s.tryRun(t)
	require.NoError(t, err)
	return steps
}

func (s fixture) tryRun(t *testing.T) (steps []string, err error) {
	t.Helper()
	_, err = run(t.Context(), s.options(), func(step string) { steps = append(steps, step) }, fake{fixture: s})
	return steps, err
}

func (s fixture) undo(t *testing.T) {
	t.Helper()
	require.NoError(t, s.tryUndo(t, fake{fixture: s}))
}

func (s fixture) tryUndo(t *testing.T, f fake) error {
	t.Helper()
	return undo(t.Context(), s.options().Config.Root, func(string) {}, f)
}

// adopt returns the path of a file in ROOT/adopt.
func (s fixture) adopt(name string) string {
	return filepath.Join(rootdir.Adoption(s.options().Config.Root), name)
}

func (s fixture) setPhase(t *testing.T, phase Phase) {
	t.Helper()
	r, err := Read(s.options().Config.Root)
	require.NoError(t, err)
	r.Phase = phase
	require.NoError(t, r.put(s.adopt(""), openName))
}
