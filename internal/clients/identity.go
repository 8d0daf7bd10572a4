package clients

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/metadata"
)

// identifyWait is how long calls of a new client wait for its answers. The time starts with the client, not with the
// call, because containerd's collector holds a lock during all its removals.
const identifyWait = 10 * time.Second

// progress says which answers a client has given.
type progress int

const (
	unasked progress = iota // its sockets were not examined yet
	silent                  // no socket of containerd; one may follow
	listens                 // it has such a socket
	told                    // its installation is recorded, and compared with the last one
	listed                  // it has given all: a containerd has listed its snapshots; a buildkitd lists none
)

// identity has the answers of one client.
type identity struct {
	since    time.Time // when it became the client, or thinsnap started
	progress progress
	changed  chan struct{} // closed when progress changes, then replaced
	patience chan struct{} // closed identifyWait after since
	stop     context.CancelFunc
	failed   error // why an answer is missing; nil before the first failure
	// elsewhere is another client whose key space has snapshots of the same installation, or empty.
	elsewhere string
}

func newIdentity(wait time.Duration) *identity {
	id := &identity{
		since: time.Now(), changed: make(chan struct{}), patience: make(chan struct{}), stop: func() {},
	}
	time.AfterFunc(wait, func() { close(id.patience) })
	return id
}

// end stops the questions to the client, and wakes the calls that wait for answers.
func (id *identity) end() {
	id.stop()
	id.set(id.progress)
}

func (id *identity) set(p progress) {
	id.progress = p
	close(id.changed)
	id.changed = make(chan struct{})
}

// tellsMore reports whether the client is expected to show more of its database.
func (id *identity) tellsMore() bool { return id.progress != silent && id.progress != listed }

// errReplaced is returned to a process that is no longer the client.
var errReplaced = fmt.Errorf("another process has become the client: %w", errdefs.ErrFailedPrecondition)

// report has the callbacks for the answers of a process.
type report struct {
	// listens is called with whether the process has a socket of containerd.
	listens func(bool)
	// told is called with the installation. If it fails, the process is asked again.
	told func(installation string) error
}

// mustTell reports whether an earlier client told an installation, and this client has not told its own yet.
func (r *Registry) mustTell() bool {
	return r.client.Installation != "" && r.identity.progress < told && !unseen(r.client)
}

// unseen reports whether the client's process cannot be seen.
func unseen(client metadata.ClientRecord) bool { return client.PID == 0 && !client.Since.IsZero() }

// await waits until the client has given the answers that a call needs, or identifyWait is over.
func (r *Registry) await(ctx context.Context, needsMore func() bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	id := r.identity
	for needsMore() {
		changed := id.changed
		r.mu.Unlock()
		over, err := false, error(nil)
		select {
		case <-changed:
		case <-id.patience:
			over = true
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		r.mu.Lock()
		if r.identity != id {
			return errReplaced
		}
		if over || err != nil {
			return err
		}
	}
	return nil
}

// ask asks the client until it has given all answers, for as long as it lives. A containerd may call before it listens
// (the CRI plugin does while it is loaded), and may be slow to answer.
func (r *Registry) ask(ctx context.Context, id *identity) {
	go r.logOverdue(ctx, id)
	for ctx.Err() == nil {
		client, ok := r.living(id)
		if !ok {
			return
		}
		err := r.identify(ctx, process(client), client.Proxy, report{
			listens: func(is bool) { r.noteListens(id, is) },
			told:    func(installation string) error { return r.noteInstallation(ctx, id, installation) },
		})
		if err == nil {
			r.note(id, listed)
			return
		}
		if ctx.Err() == nil {
			r.noteFailure(ctx, id, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(min(max(time.Since(id.since)/10, 100*time.Millisecond), time.Minute)):
		}
	}
}

// noteFailure logs why an answer is missing, if the reason has changed.
func (r *Registry) noteFailure(ctx context.Context, id *identity, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.identity != id || !r.handle.lives() || (id.failed != nil && id.failed.Error() == err.Error()) {
		return
	}
	id.failed = err
	r.logFailure(ctx)
}

// logOverdue logs why removals are refused, once identifyWait is over.
func (r *Registry) logOverdue(ctx context.Context, id *identity) {
	select {
	case <-ctx.Done():
		return
	case <-id.patience:
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.identity != id || !r.handle.lives() || id.progress >= told:
	case r.mustTell():
		r.logFailure(ctx)
	case mayKeep(r.client):
		r.logUntold(ctx)
	}
}

// logUntold logs how many snapshots are kept from a client that told no installation.
func (r *Registry) logUntold(ctx context.Context) {
	count := 0
	if err := r.forEach(ctx, func(s metadata.Snapshot) {
		if fromOther(r.client, s) {
			count++
		}
	}); err == nil && count > 0 {
		r.log(ctx).Warnf("%d snapshots of earlier clients are kept from %v: it has not told its identity, as containerd "+
			"and BuildKit do, and may have another database; if it has the same one, run `%s`",
			count, r.process(), r.command("accept"))
	}
}

var errNoAnswer = errors.New("it has not answered yet")

func (r *Registry) logFailure(ctx context.Context) {
	id := r.identity
	logger := r.log(ctx).WithError(cmp.Or(id.failed, errNoAnswer))
	switch {
	case r.mustTell() && isClosed(id.patience):
		logger.Warnf("%v has not told whether it is the same containerd as before, so it cannot remove that one's "+
			"snapshots; it is asked again", r.process())
	case id.progress >= told:
		logger.Infof("%v has not listed all its snapshots; it is asked again", r.process())
	case errors.Is(id.failed, errNoContainerd): // as for programs other than containerd
		logger.Debugf("%v has not told which containerd it is; it is asked again", r.process())
	default:
		logger.Infof("%v has not told which containerd it is; it is asked again", r.process())
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// living returns the client, and whether the client lives and id is still its identity.
func (r *Registry) living(id *identity) (metadata.ClientRecord, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.client, r.identity == id && r.handle.lives()
}

func (r *Registry) note(id *identity, p progress) {
	r.mu.Lock()
	defer r.mu.Unlock()
	id.set(p)
}

func (r *Registry) noteListens(id *identity, is bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case id.progress >= told:
	case is:
		id.set(listens)
	default:
		id.set(silent)
	}
}

// noteInstallation records the client's installation. If it differs from the last told one, all snapshots of earlier
// clients are kept.
func (r *Registry) noteInstallation(ctx context.Context, id *identity, installation string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.identity != id {
		return errReplaced
	}
	if err := r.recordInstallation(ctx, installation); err != nil {
		return fmt.Errorf("record the identity of the client: %w", err)
	}
	elsewhere, err := r.findElsewhere(ctx, installation)
	if err != nil {
		return fmt.Errorf("find other snapshots of the client: %w", err)
	}
	if id.elsewhere = elsewhere; elsewhere != "" && mayKeep(r.client) {
		r.log(ctx).Warnf("%v also has snapshots as client %q, and finds those of another client here: if the addresses of "+
			"clients were exchanged, exchange them again", r.process(), elsewhere)
	}
	id.set(max(id.progress, told))
	return nil
}

func (r *Registry) recordInstallation(ctx context.Context, installation string) error {
	if known, ok := r.client.InstallationOf(r.client.Number); ok && known == installation &&
		installation == r.client.Installation {
		return nil
	}
	next := r.client.WithInstallation(installation)
	if r.client.Installation == "" || r.client.Installation == installation {
		return r.save(ctx, next)
	}
	if err := r.keep(ctx, next, nil); err != nil {
		return err
	}
	r.logKept(ctx, "another installation has become the client")
	return nil
}
