package snapshotter_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/anishathalye/porcupine"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

type request struct {
	op string
	// key is the subject of the operation; of a Commit, the active snapshot.
	key string
	// other is the parent of a Prepare or a View, the source of a Fork, and the name of a Commit.
	other string
	label string
	// write is the content that the client writes to its own snapshot before the operation counts as ended.
	write string
	// tag identifies a failed Prepare, View or Fork; failed is its op.
	tag    int
	failed string
}

// Operations that no client requests; see history.do.
const (
	opSeen   = "seen of a Prepare or View that failed"
	opUndone = "undone of a Prepare or View that failed"
)

type answer struct {
	// class is "" for success, otherwise that of the error; failed is an operation that met a fault or was
	// cancelled.
	class string
	// seen is all else: a record, the content of a volume, or all records.
	seen string
}

const failed = "failed"

// class returns the class of an error that the model knows. Any other error is returned as its text, which
// no model explains.
func class(err error) string {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, errInjected), errdefs.IsCanceled(err), errdefs.IsDeadlineExceeded(err):
		return failed
	}
	for _, c := range []error{errdefs.ErrAlreadyExists, errdefs.ErrNotFound, errdefs.ErrInvalidArgument, errdefs.ErrFailedPrecondition} {
		if errors.Is(err, c) {
			return c.Error()
		}
	}
	return err.Error()
}

// entry is the model's state of a key.
type entry struct {
	kind                   snapshots.Kind
	parent, label, content string
	// tag is that of the failing Prepare or View that created it, or 0.
	tag int
}

func (e entry) record(key string) string {
	return fmt.Sprintf("%s %v parent=%s label=%s", key, e.kind, e.parent, e.label)
}

// world is the model of a snapshotter: containerd's rules, and the content of the volumes. It is immutable:
// its methods return a new one.
type world struct {
	keys map[string]entry
	// undone are the tags of the Prepares and Views that were undone.
	undone map[int]bool
}

func (w world) with(key string, e entry) world {
	keys := maps.Clone(w.keys)
	keys[key] = e
	return world{keys, w.undone}
}

func (w world) without(key string) world {
	keys := maps.Clone(w.keys)
	delete(keys, key)
	return world{keys, w.undone}
}

func (w world) hasChildren(key string) bool {
	for _, e := range w.keys {
		if e.parent == key {
			return true
		}
	}
	return false
}

func (w world) records() string {
	var all []string
	for key, e := range w.keys {
		all = append(all, e.record(key))
	}
	slices.Sort(all)
	return strings.Join(all, "\n")
}

// step reports whether an operation can have this answer, and returns the world after it. An operation that
// breaks two rules may be refused for either.
func (w world) step(in request, out answer) (bool, world) {
	if out.class == failed {
		// A failed operation changes nothing.
		return true, w
	}
	var wrong []error
	must := func(rule bool, class error) {
		if !rule {
			wrong = append(wrong, class)
		}
	}
	e, exists := w.keys[in.key]
	next, seen := w, ""
	switch in.op {
	case "Prepare", "View", opSeen:
		parent, there := w.keys[in.other]
		must(in.other == "" || there, errdefs.ErrNotFound)
		must(in.other == "" || !there || parent.kind == snapshots.KindCommitted || in.failed == "Fork", errdefs.ErrInvalidArgument)
		must(!exists, errdefs.ErrAlreadyExists)
		e = entry{kind: snapshots.KindActive, parent: in.other, label: in.label, content: parent.content, tag: in.tag}
		switch {
		case in.op == "View" || in.failed == "View":
			e.kind = snapshots.KindView
		case in.failed == "Fork":
			e.parent = parent.parent
			must(!there || parent.kind == snapshots.KindActive, errdefs.ErrFailedPrecondition)
		}
		if out.seen != "" {
			seen = "content " + parent.content
		}
		if in.write != "" {
			e.content = in.write
		}
		if in.op == opSeen {
			if len(wrong) > 0 || w.undone[in.tag] {
				return true, w
			}
		}
		next = w.with(in.key, e)
	case "Fork":
		source := w.keys[in.other]
		if out.class != "" {
			return true, w // the source was replaced after the token was issued
		}
		must(source.kind == snapshots.KindActive, errdefs.ErrFailedPrecondition)
		must(!exists, errdefs.ErrAlreadyExists)
		seen = "content " + source.content
		next = w.with(in.key, entry{kind: snapshots.KindActive, parent: source.parent, label: in.label, content: source.content})
	case opUndone:
		if e.tag == in.tag {
			next = w.without(in.key)
		}
		next.undone = maps.Clone(w.undone)
		next.undone[in.tag] = true
		return true, next
	case "Commit":
		_, taken := w.keys[in.other]
		must(!taken, errdefs.ErrAlreadyExists)
		must(exists, errdefs.ErrNotFound)
		must(!exists || e.kind == snapshots.KindActive, errdefs.ErrFailedPrecondition)
		next = w.without(in.key).with(in.other, entry{kind: snapshots.KindCommitted, parent: e.parent, label: in.label, content: e.content})
	case "Remove":
		must(exists, errdefs.ErrNotFound)
		must(!w.hasChildren(in.key), errdefs.ErrFailedPrecondition)
		next = w.without(in.key)
	case "Update":
		must(exists, errdefs.ErrNotFound)
		e.label = in.label
		next, seen = w.with(in.key, e), e.record(in.key)
	case "Stat":
		must(exists, errdefs.ErrNotFound)
		seen = e.record(in.key)
	case "Usage":
		must(exists, errdefs.ErrNotFound)
	case "Mounts":
		must(exists, errdefs.ErrNotFound)
		must(!exists || e.kind != snapshots.KindCommitted, errdefs.ErrFailedPrecondition)
	case "Freeze":
		must(exists, errdefs.ErrNotFound)
		seen = "content " + e.content
	case "Walk":
		seen = w.records()
	case "Cleanup":
	}
	if out.class != "" {
		return slices.ContainsFunc(wrong, func(c error) bool { return c.Error() == out.class }), w
	}
	return len(wrong) == 0 && out.seen == seen, next
}

// containerdRules is the model for porcupine.
func containerdRules() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return world{keys: map[string]entry{}, undone: map[int]bool{}} },
		Step: func(state, in, out any) (bool, any) {
			return state.(world).step(in.(request), out.(answer)) //nolint:errcheck // always of this type
		},
		Equal: func(a, b any) bool {
			one, two := a.(world), b.(world) //nolint:errcheck // always of this type
			return maps.Equal(one.keys, two.keys) && maps.Equal(one.undone, two.undone)
		},
	}
}
