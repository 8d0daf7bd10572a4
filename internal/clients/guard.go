package clients

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/metadata"
)

// Guard returns the snapshotter for the client. It learns from the keys of calls how new the client's database is. It
// refuses to remove an earlier client's snapshot that this database may never have had.
func (r *Registry) Guard(sn Snapshotter) snapshots.Snapshotter { return &guard{sn, r} }

// Snapshotter is the interface that Guard wraps.
type Snapshotter interface {
	snapshots.Snapshotter
	snapshots.Cleaner
}

type guard struct {
	Snapshotter
	registry *Registry
}

func (g *guard) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	g.registry.noteKey(ctx, key)
	return g.Snapshotter.Stat(ctx, key)
}

func (g *guard) Update(ctx context.Context, info snapshots.Info, paths ...string) (snapshots.Info, error) {
	g.registry.noteKey(ctx, info.Name)
	return g.Snapshotter.Update(ctx, info, paths...)
}

func (g *guard) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	g.registry.noteKey(ctx, key)
	return g.Snapshotter.Usage(ctx, key)
}

func (g *guard) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	g.registry.noteKey(ctx, key)
	return g.Snapshotter.Mounts(ctx, key)
}

func (g *guard) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	if err := g.registry.noteNewKey(ctx, key, parent); err != nil {
		return nil, err
	}
	mounts, err := g.Snapshotter.Prepare(ctx, key, parent, opts...)
	return mounts, explainTaken(err)
}

func (g *guard) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	if err := g.registry.noteNewKey(ctx, key, parent); err != nil {
		return nil, err
	}
	mounts, err := g.Snapshotter.View(ctx, key, parent, opts...)
	return mounts, explainTaken(err)
}

// explainTaken adds why a key is taken: containerd gives each key once, unless it has lost its database.
func explainTaken(err error) error {
	if errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("%w: an earlier client has made it; try again, and containerd takes the next number", err)
	}
	return err
}

func (g *guard) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	if err := g.registry.noteNewKey(ctx, name, key); err != nil {
		return err
	}
	err := g.Snapshotter.Commit(ctx, name, key, opts...)
	if errdefs.IsAlreadyExists(err) && g.registry.isSameLayer(ctx, name, key) {
		return g.takeOver(ctx, name, key)
	}
	return err
}

// takeOver removes the layer that the client has unpacked, and gives the client an earlier client's identical one.
func (g *guard) takeOver(ctx context.Context, name, key string) error {
	if err := g.Snapshotter.Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	if err := g.registry.takeLayer(ctx, name); err != nil {
		return fmt.Errorf("take over layer %q: %w", name, err)
	}
	log.G(ctx).WithField("name", name).Info("used the existing layer of an earlier client instead of the new one")
	return nil
}

func (g *guard) Remove(ctx context.Context, key string) error {
	if err := g.registry.mayRemove(ctx, key); err != nil {
		return err
	}
	return g.Snapshotter.Remove(ctx, key)
}

// noteKey records that the client's database has a key. A key in a Remove proves nothing: the collector has it from a
// List.
func (r *Registry) noteKey(ctx context.Context, key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.used == nil {
		return
	}
	r.used.raise(key)
	if namespace, number, _, ok := SplitKey(key); ok && number <= r.earlier[namespace] {
		r.had.raise(key)
	}
	if err := r.release(ctx, key); err != nil {
		log.G(ctx).WithError(err).WithField("key", key).
			Warn("the snapshot is kept from the client's collector, although the client knows it")
	}
}

// release makes a kept snapshot the client's own, because the client's database has its whole key.
func (r *Registry) release(ctx context.Context, key string) error {
	if !mayKeep(r.client) || !r.mayRelease(key) {
		return nil
	}
	s, err := r.get(ctx, key)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil || !isKept(r.client, s) {
		return err
	}
	return r.take(ctx, key)
}

// takeLayer makes an existing layer the client's own after the client has unpacked the same one, unless another client
// may need it.
func (r *Registry) takeLayer(ctx context.Context, name string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, err := r.get(ctx, name)
	if err != nil {
		return err
	}
	may := !r.mustTell()
	if isKept(r.client, s) {
		may = r.mayRelease(name)
	}
	if !may {
		return nil
	}
	return r.take(ctx, name)
}

// take makes the client the recorded creator of a snapshot.
func (r *Registry) take(ctx context.Context, key string) error {
	stored, err := metadata.JoinKey(r.space, key)
	if err != nil {
		return err
	}
	return r.store.Update(ctx, func(tx *metadata.Tx) error { return tx.TakeOver(stored) })
}

// get returns a snapshot; its keys are without the key space. It returns errdefs.ErrNotFound also for an invalid key.
func (r *Registry) get(ctx context.Context, key string) (s metadata.Snapshot, err error) {
	stored, err := metadata.JoinKey(r.space, key)
	if err != nil {
		return s, fmt.Errorf("%w: %w", errdefs.ErrNotFound, err)
	}
	err = r.store.View(ctx, func(tx *metadata.Tx) (err error) {
		s, err = tx.Get(stored)
		return err
	})
	return withClientKeys(s), err
}

// noteNewKey records two keys of the client's database: created, which is new, and known. If an earlier client used the
// number of the new key, the database is older than the snapshots.
func (r *Registry) noteNewKey(ctx context.Context, created, known string) error {
	r.noteKey(ctx, known)
	if err := r.keepIfUsedBefore(ctx, created); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.used != nil {
		r.used.raise(created)
	}
	return nil
}

// usedBefore reports whether an earlier client used the number of a key. The number does not count if this client's
// database had it or a higher one before: then the namespace was removed and created again.
func (r *Registry) usedBefore(key string) bool {
	namespace, number, _, ok := SplitKey(key)
	return ok && number <= r.earlier[namespace] && number > r.had[namespace]
}

// keepIfUsedBefore protects the snapshots that the client's database lacks, if an earlier client used the number of a
// new key. It returns errdefs.ErrUnavailable until a containerd has listed its snapshots.
func (r *Registry) keepIfUsedBefore(ctx context.Context, created string) error {
	var suspect, incomplete bool
	var p Process
	if err := r.await(ctx, func() bool {
		suspect, incomplete, p = r.usedBefore(created), r.identity.tellsMore(), r.process()
		return suspect && incomplete
	}); err != nil {
		return err
	}
	switch {
	case !suspect:
		return nil
	case incomplete:
		return fmt.Errorf("an earlier client used the number of %q, so containerd's data may be older: "+
			"thinsnap waits until %v has listed its snapshots; try again: %w", created, p, errdefs.ErrUnavailable)
	default:
		return r.keepIfOlder(ctx, created)
	}
}

// mayRemove returns errdefs.ErrFailedPrecondition if the client must not remove a snapshot. containerd's collector then
// continues with the others, and tries again later. Any other error would end the collection.
func (r *Registry) mayRemove(ctx context.Context, key string) error {
	var refused error
	if err := r.await(ctx, func() (mayChange bool) {
		refused, mayChange = r.decide(ctx, key)
		return mayChange
	}); err != nil {
		return err
	}
	if refused != nil {
		return fmt.Errorf("remove snapshot %q: %w", key, refused)
	}
	return nil
}

// decide returns the reason why the client must not remove a snapshot, or nil. It also returns whether an answer of the
// client can still change this. A list of its snapshots can only allow more removals.
//
//nolint:revive // the error is no failure
func (r *Registry) decide(ctx context.Context, key string) (refused error, mayChange bool) {
	s, err := r.get(ctx, key)
	if errdefs.IsNotFound(err) {
		return nil, false // the snapshotter returns the same
	}
	if err != nil {
		return err, false
	}
	if s.Client == r.client.Number || s.Client < r.client.AcceptedBefore {
		return nil, false
	}
	namespace, number, _, ok := SplitKey(s.Key)
	switch {
	case fromOther(r.client, s):
		return fmt.Errorf("it belongs to an earlier client, and is kept: nothing shows that %v has the same database; "+
				"if it has, or the earlier client is gone for good, run `%s`: %w",
				r.process(), r.command("accept"), errdefs.ErrFailedPrecondition),
			r.identity.tellsMore()
	case isKept(r.client, s):
		return fmt.Errorf("it belongs to an earlier client, and is kept: containerd's data was lost, or is older; "+
			"if the data is lost for good, run `%s`: %w",
			r.command("accept"), errdefs.ErrFailedPrecondition), r.identity.tellsMore()
	case r.mustTell():
		return fmt.Errorf("an earlier client made it, and thinsnap does not know yet whether %v is the same containerd or "+
			"BuildKit: thinsnap asks its socket, and a later garbage collection removes the snapshot; if the process is "+
			"neither, run `%s`: %w", r.process(), r.command("accept"), errdefs.ErrFailedPrecondition), true
	case ok && number > r.used[namespace]:
		return fmt.Errorf("it belongs to an earlier client, and is "+
			"newer than any snapshot that containerd is known to have: it can be removed when containerd has made a new "+
			"snapshot, or after `%s`: %w", r.command("accept"), errdefs.ErrFailedPrecondition), r.identity.tellsMore()
	default:
		return nil, false
	}
}

// isSameLayer reports whether name is an earlier client's layer with the content that was unpacked into key. containerd
// names a layer by a digest of its content and its parents'.
func (r *Registry) isSameLayer(ctx context.Context, name, key string) bool {
	_, _, chain, ok := SplitKey(name)
	if !ok || !isDigest(chain) {
		return false
	}
	layer, err := r.get(ctx, name)
	if err != nil {
		return false
	}
	unpacked, err := r.get(ctx, key)
	if err != nil {
		return false
	}
	client, _, err := r.current(ctx)
	return err == nil && layer.Kind == snapshots.KindCommitted && unpacked.Kind == snapshots.KindActive &&
		layer.Client < client.Number && layer.Parent == unpacked.Parent
}
