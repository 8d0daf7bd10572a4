package clients

import (
	"context"
	"maps"
	"slices"

	"github.com/thinsnap/thinsnap/metadata"
)

// isKept reports whether a snapshot of an earlier client is kept: the database of a later client lacked it, or the
// client is not known to have the earlier one's database.
func isKept(client metadata.ClientRecord, s metadata.Snapshot) bool {
	return fromOther(client, s) ||
		slices.ContainsFunc(client.Protections, func(k metadata.Protection) bool { return protects(k, client, s) })
}

// Keeps returns a function that reports whether a snapshot of the key space is kept from the client.
func (r *Registry) Keeps(ctx context.Context) (func(metadata.Snapshot) bool, error) {
	client, _, err := r.current(ctx)
	return func(s metadata.Snapshot) bool { return isKept(client, withClientKeys(s)) }, err
}

func protects(k metadata.Protection, client metadata.ClientRecord, s metadata.Snapshot) bool {
	if s.Client >= k.Before || s.Client < client.AcceptedBefore {
		return false
	}
	namespace, number, _, ok := SplitKey(s.Key)
	return !ok || number > k.Known[namespace]
}

// findEarlier finds the numbers that earlier clients used. Kept snapshots do not count, because they are of another
// database.
func (r *Registry) findEarlier(ctx context.Context) error {
	earlier := make(numbers)
	if err := r.forEach(ctx, func(s metadata.Snapshot) {
		if s.Client != r.client.Number && s.Client >= r.client.AcceptedBefore && !isKept(r.client, s) {
			earlier.raiseUsed(s)
		}
	}); err != nil {
		return err
	}
	r.earlier = earlier
	return nil
}

// keepIfOlder is keepIfUsedBefore without the wait for the client's answers.
func (r *Registry) keepIfOlder(ctx context.Context, created string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	// Snapshots with such numbers may have been removed with their namespace.
	if err := r.findEarlier(ctx); err != nil || !r.usedBefore(created) {
		return err
	}
	known := make(numbers)
	if own, ok := r.ownProtection(); ok {
		maps.Copy(known, own.Known)
	} else {
		maps.Copy(known, r.used)
	}
	// Calls with later numbers may have arrived before this one.
	namespace, number, _, _ := SplitKey(created)
	known[namespace] = min(known[namespace], number-1)
	if err := r.keep(ctx, r.client, known); err != nil {
		return err
	}
	r.logKept(ctx, "containerd's database is older than snapshots in the store")
	return nil
}

// ownProtection returns the protection that the client itself has added, and false if it has added none.
func (r *Registry) ownProtection() (metadata.Protection, bool) {
	all := r.client.Protections
	if len(all) == 0 || all[len(all)-1].Before != r.client.Number {
		return metadata.Protection{}, false
	}
	return all[len(all)-1], true
}

// keep stores the client with a Protection of all earlier snapshots except those with known numbers. It drops
// Protections whose snapshots are all removed.
func (r *Registry) keep(ctx context.Context, next metadata.ClientRecord, known numbers) error {
	keeps := make(map[uint64]bool)
	if err := r.forEach(ctx, func(s metadata.Snapshot) {
		for _, k := range next.Protections {
			if protects(k, next, s) {
				keeps[k.Before] = true
			}
		}
	}); err != nil {
		return err
	}
	var all []metadata.Protection
	for _, k := range next.Protections {
		if k.Before != next.Number && keeps[k.Before] {
			all = append(all, k)
		}
	}
	next.Protections = append(all, metadata.Protection{Before: next.Number, Known: known})
	if err := r.save(ctx, next); err != nil {
		return err
	}
	return r.findEarlier(ctx)
}

func (r *Registry) logKept(ctx context.Context, why string) {
	r.log(ctx).Warn(why + ": snapshots of earlier clients are kept; if those clients' data is lost for good, run `" +
		r.command("accept") + "`, and the collector removes them")
}

// forEach calls visit for each snapshot of the key space. Its keys are without the key space.
func (r *Registry) forEach(ctx context.Context, visit func(metadata.Snapshot)) error {
	return r.store.View(ctx, func(tx *metadata.Tx) error {
		return tx.ForEachIn(r.space, func(s metadata.Snapshot) error {
			visit(withClientKeys(s))
			return nil
		})
	})
}

// withClientKeys returns a snapshot with the keys that the client uses, instead of the stored ones.
func withClientKeys(s metadata.Snapshot) metadata.Snapshot {
	_, s.Key = metadata.SplitKey(s.Key)
	_, s.Parent = metadata.SplitKey(s.Parent)
	return s
}
