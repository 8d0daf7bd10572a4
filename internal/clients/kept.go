package clients

import (
	"context"
	"maps"
	"slices"

	"github.com/thinsnap/thinsnap/metadata"
)

// kept returns whether a snapshot is of an earlier client, and the database of a later one has not
// had it, or the two are not known to have the same database.
func kept(client metadata.ClientRecord, s metadata.Snapshot) bool {
	return ofOther(client, s) ||
		slices.ContainsFunc(client.Protections, func(k metadata.Protection) bool { return keptBy(k, client, s) })
}

// Keeps returns what tells whether a snapshot of the key space is kept: of an earlier client, and not in the
// database of this one.
func (r *Registry) Keeps(ctx context.Context) (func(metadata.Snapshot) bool, error) {
	client, _, err := r.present(ctx)
	return func(s metadata.Snapshot) bool { return kept(client, own(s)) }, err
}

func keptBy(k metadata.Protection, client metadata.ClientRecord, s metadata.Snapshot) bool {
	if s.Client >= k.Before || s.Client < client.AcceptedBefore {
		return false
	}
	namespace, number, _, ok := SplitKey(s.Key)
	return !ok || number > k.Known[namespace]
}

// findEarlier finds out which numbers earlier clients were given. What is kept tells nothing: the
// database is another than that which it was in.
func (r *Registry) findEarlier(ctx context.Context) error {
	earlier := make(numbers)
	if err := r.forEach(ctx, func(s metadata.Snapshot) {
		if s.Client != r.client.Number && s.Client >= r.client.AcceptedBefore && !kept(r.client, s) {
			earlier.raiseGiven(s)
		}
	}); err != nil {
		return err
	}
	r.earlier = earlier
	return nil
}

// keepIfOlder protects what the client's database lacks, if it has given a key whose number an
// earlier client was given before.
func (r *Registry) keepIfOlder(ctx context.Context, given string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	// The snapshots with such numbers may have been removed, with their name space.
	if err := r.findEarlier(ctx); err != nil || !r.gaveBefore(given) {
		return err
	}
	known := make(numbers)
	if own, ok := r.ownProtection(); ok {
		maps.Copy(known, own.Known)
	} else {
		maps.Copy(known, r.shown)
	}
	// Calls with later numbers may have come before this one.
	namespace, number, _, _ := SplitKey(given)
	known[namespace] = min(known[namespace], number-1)
	if err := r.keep(ctx, r.client, known); err != nil {
		return err
	}
	r.logKept(ctx, "containerd's database is older than snapshots in the store")
	return nil
}

// ownProtection returns the protection from the present client, if there is one.
func (r *Registry) ownProtection() (metadata.Protection, bool) {
	all := r.client.Protections
	if len(all) == 0 || all[len(all)-1].Before != r.client.Number {
		return metadata.Protection{}, false
	}
	return all[len(all)-1], true
}

// keep stores the client with the snapshots of earlier clients protected whose numbers are not
// known. It forgets earlier reasons to keep snapshots that are all gone.
func (r *Registry) keep(ctx context.Context, next metadata.ClientRecord, known numbers) error {
	keeps := make(map[uint64]bool)
	if err := r.forEach(ctx, func(s metadata.Snapshot) {
		for _, k := range next.Protections {
			if keptBy(k, next, s) {
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
	r.log(ctx).Warn(why + ": the snapshots from before are kept; if its data was lost for good, run `" + r.command("accept") +
		"`, and its collector removes them")
}

// forEach calls visit with each snapshot of the key space, with the client's keys.
func (r *Registry) forEach(ctx context.Context, visit func(metadata.Snapshot)) error {
	return r.store.View(ctx, func(tx *metadata.Tx) error {
		return tx.ForEachIn(r.space, func(s metadata.Snapshot) error {
			visit(own(s))
			return nil
		})
	})
}

// own returns a snapshot with the client's keys.
func own(s metadata.Snapshot) metadata.Snapshot {
	_, s.Key = metadata.SplitKey(s.Key)
	_, s.Parent = metadata.SplitKey(s.Parent)
	return s
}
