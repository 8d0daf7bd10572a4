package adopt

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/internal/adopt/metadb"
	"github.com/thinsnap/thinsnap/metadata"
)

// shownDifferences limits the differences in an error.
const shownDifferences = 10

// requireUnchanged fails if the store has other snapshots or other kept leftovers than when it was
// built. Views may be missing.
func (a *adoption) requireUnchanged(ctx context.Context, store *metadata.Store) error {
	built, err := metadata.Open(a.path(storeName), metadata.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	before, err := contentsOf(ctx, built)
	if err = errors.Join(err, built.Close()); err != nil {
		return err
	}
	after, err := contentsOf(ctx, store)
	if err != nil {
		return err
	}
	all := differences(before, after)
	if len(all) == 0 {
		return nil
	}
	return fmt.Errorf("thinsnap's snapshots have changed since the adoption: remove the new ones through containerd; "+
		"the adoption cannot be undone if an adopted one was removed or committed: %s: %w", abridge(all),
		errdefs.ErrFailedPrecondition)
}

// requireKnownNames fails if containerd names snapshots of thinsnap that the store did not have
// when it was built. After requireUnchanged this means that the store is older than containerd's
// database.
func (a *adoption) requireKnownNames(ctx context.Context) error {
	keys, err := a.builtKeys(ctx)
	if err != nil {
		return err
	}
	names, err := metadb.Read(ctx, a.record.metaPath(), a.record.Proxy)
	if err != nil {
		return err
	}
	var unknown []string
	for _, ns := range names.Namespaces {
		for _, s := range ns.Snapshots {
			if !keys[s.Backend] {
				unknown = append(unknown, fmt.Sprintf("%q in namespace %q", s.Key, ns.Name))
			}
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	return fmt.Errorf("containerd has snapshots of thinsnap that thinsnap does not have: restore the store that belongs "+
		"to them, or remove them through containerd: %s: %w", abridge(unknown), errdefs.ErrFailedPrecondition)
}

// abridge joins the first shownDifferences of all, with the number of the others.
func abridge(all []string) string {
	text := strings.Join(all[:min(len(all), shownDifferences)], "; ")
	if more := len(all) - shownDifferences; more > 0 {
		text += fmt.Sprintf("; and %d more", more)
	}
	return text
}

// contents has a line for each snapshot and each kept leftover of a store, by name.
type contents map[string]content

type content struct {
	text string
	// view is true for a View. It may disappear: the volume that the built-in made for the View is a
	// kept leftover.
	view bool
}

func contentsOf(ctx context.Context, store *metadata.Store) (contents, error) {
	c := make(contents)
	err := store.View(ctx, func(tx *metadata.Tx) error {
		clear(c)
		if err := tx.ForEach(func(s metadata.Snapshot) error {
			text := fmt.Sprintf("%v of %q, volume %d, %d bytes, %s", s.Kind, metadata.ShowKey(s.Parent), s.VolumeID, s.Size,
				s.Filesystem)
			c[fmt.Sprintf("snapshot %q", metadata.ShowKey(s.Key))] = content{text, s.Kind == snapshots.KindView}
			return nil
		}); err != nil {
			return err
		}
		kept, err := tx.Kept()
		for _, k := range kept {
			c[fmt.Sprintf("leftover %d", k.VolumeID)] = content{text: "kept"}
		}
		return err
	})
	return c, err
}

func differences(before, after contents) []string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(before)) {
		switch now, found := after[name]; {
		case !found && before[name].view:
		case !found:
			all = append(all, name+" is gone")
		case now != before[name]:
			all = append(all, fmt.Sprintf("%s was %s, and is %s", name, before[name].text, now.text))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(after)) {
		if _, found := before[name]; !found {
			all = append(all, name+" is new")
		}
	}
	return all
}
