package clients

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/thinsnap/thinsnap/metadata"
)

// Registry has the client of one key space of a store. The first process that calls is the client until it ends; then
// the next one is. The record in the store outlives a restart of thinsnap.
//
// The record includes the proxy name, because containerd's collector for another name knows none of the snapshots.
type Registry struct {
	store *metadata.Store
	space string // name of the key space; empty for the default one
	// identify asks a process for its installation and a list of its snapshots. Tests replace identify and wait.
	identify  func(_ context.Context, _ Process, proxy string, _ report) error
	wait      time.Duration
	logUnseen sync.Once // logs once that the process cannot be seen

	mu     sync.Mutex
	loaded bool // client is as stored, or empty if the store has none
	client metadata.ClientRecord
	handle *handle
	// For each namespace: used has the highest number that the client has used. earlier has the highest number that
	// earlier clients used, according to their snapshots that are not kept.
	used, earlier numbers
	// had has the highest number that the client has used and that is not above earlier: its database had that number
	// before.
	had         numbers
	identity    *identity
	refused     uint64
	lastRefused string
}

// New returns the registry of a key space of a store. The name of the default key space is empty.
func New(store *metadata.Store, space string) *Registry {
	return &Registry{store: store, space: space, identify: identify, wait: identifyWait, identity: newIdentity(0)}
}

// A Call is a call on the client's socket.
type Call struct {
	Process Process
	Proxy   string // the client's name for thinsnap; empty if the call has none
}

// Admit returns nil if the process may make the call, and makes it the client if no client lives. It returns
// errdefs.ErrFailedPrecondition while another process is the client, or if the key space has snapshots and its clients
// have used another proxy name.
func (r *Registry) Admit(ctx context.Context, call Call) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.load(ctx); err != nil {
		return err
	}
	if call.Process.PID == 0 {
		r.logUnseen.Do(func() {
			r.log(ctx).Warn("the client's process cannot be seen: a second client is not refused, and a containerd whose data " +
				"was wiped or is older removes the snapshots that it does not know; " +
				"run thinsnap in the host's PID namespace (hostPID)")
		})
	}
	known := !r.client.Since.IsZero()
	same := known && r.process().Same(call.Process)
	if known && !same && r.handle.lives() {
		return r.refuse(call, fmt.Errorf("this socket is used by %v as proxy plugin %q, and only one process may use it; "+
			"stop that one, or, if it cannot be stopped, run `%s`; a socket for another containerd is an entry of [[clients]] "+
			"in the configuration; this is %v: %w",
			r.process(), r.client.Proxy, r.command("reset"), call.Process, errdefs.ErrFailedPrecondition))
	}
	if renamed := call.Proxy != "" && r.client.Proxy != "" && call.Proxy != r.client.Proxy; renamed {
		if err := r.rename(ctx, call); err != nil {
			return err
		}
	}
	switch {
	case same && (r.client.Proxy != "" || call.Proxy == ""):
		return nil
	case same:
		next := r.client
		next.Proxy = call.Proxy
		return r.save(ctx, next)
	default:
		return r.replace(ctx, call)
	}
}

// rename accepts another proxy name if the key space is empty: the collector for that name would remove all snapshots.
func (r *Registry) rename(ctx context.Context, call Call) error {
	var count metadata.KindCounts
	if err := r.store.View(ctx, func(tx *metadata.Tx) (err error) {
		count, err = tx.CountByKindIn(r.space)
		return err
	}); err != nil {
		return err
	}
	if count.Total() > 0 {
		return r.refuse(call, fmt.Errorf("containerd's proxy plugin is named %q, but the %d snapshots are those of plugin "+
			"%q, and containerd's collector would remove them: name it %q again, or run `%s`: %w",
			call.Proxy, count.Total(), r.client.Proxy, r.client.Proxy, r.command("reset"), errdefs.ErrFailedPrecondition))
	}
	next := r.client
	next.Proxy = call.Proxy
	return r.save(ctx, next)
}

// command returns the command line for a decision about the client.
func (r *Registry) command(decision string) string {
	return strings.TrimSpace("thinsnap client " + decision + " " + r.space)
}

// log returns the context's logger, with the client's name.
func (r *Registry) log(ctx context.Context) *log.Entry {
	if r.space == "" {
		return log.G(ctx)
	}
	return log.G(ctx).WithField("client", r.space)
}

func (r *Registry) refuse(call Call, err error) error {
	r.refused++
	r.lastRefused = fmt.Sprintf("%v as proxy plugin %q", call.Process, call.Proxy)
	return err
}

// replace makes another process the client.
func (r *Registry) replace(ctx context.Context, call Call) error {
	next := r.client
	next.Number++
	if call.Proxy != "" {
		next.Proxy = call.Proxy
	}
	next.PID, next.StartTime = call.Process.PID, call.Process.StartTime
	next.BootID, next.Program = call.Process.BootID, call.Process.Program
	next.Since = time.Now().UTC()
	h, err := openHandle(call.Process)
	if err != nil {
		return err
	}
	if err := r.save(ctx, next); err != nil {
		h.close()
		return err
	}
	r.handle.close()
	r.handle = h
	r.log(ctx).WithFields(log.Fields{"process": call.Process.String(), "proxy": next.Proxy}).Info("new client")
	return r.begin(ctx)
}

// load reads the client from the store, once.
func (r *Registry) load(ctx context.Context) error {
	if r.loaded {
		return nil
	}
	err := r.store.View(ctx, func(tx *metadata.Tx) (err error) {
		r.client, err = tx.Client(r.space)
		return err
	})
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	r.handle.close() // from a failed attempt
	r.handle = nil
	if !r.client.Since.IsZero() {
		if r.handle, err = openHandle(r.process()); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	return r.begin(ctx)
}

// begin computes the used numbers from the snapshots, and starts to identify the client. It also does so if the call
// that made the process the client is cancelled. After an error the next call repeats it; until then the numbers stay
// those of the previous client.
func (r *Registry) begin(ctx context.Context) error {
	r.loaded = false
	ctx = context.WithoutCancel(ctx)
	used := make(numbers)
	if err := r.forEach(ctx, func(s metadata.Snapshot) {
		if s.Client == r.client.Number {
			used.raise(s.Key)
		}
	}); err != nil {
		return err
	}
	if err := r.findEarlier(ctx); err != nil {
		return err
	}
	r.used, r.had = used, make(numbers)
	r.loaded = true
	r.identity.end()
	r.identity = newIdentity(r.wait)
	if r.client.PID == 0 || !r.handle.lives() {
		r.identity.set(silent)
		return nil
	}
	asking, stop := context.WithCancel(context.Background()) // a call's context ends earlier, and has its log fields
	r.identity.stop = stop
	go r.ask(asking, r.identity)
	return nil
}

func (r *Registry) save(ctx context.Context, next metadata.ClientRecord) error {
	if err := r.store.Update(ctx, func(tx *metadata.Tx) error { return tx.SetClient(r.space, next) }); err != nil {
		return fmt.Errorf("record the client: %w", err)
	}
	r.client = next
	return nil
}

// saveOwn stores the client and makes all snapshots of the key space its own. Otherwise the next
// installation could remove them too, because of this client's Accept.
func (r *Registry) saveOwn(ctx context.Context, next metadata.ClientRecord) error {
	err := r.store.Update(ctx, func(tx *metadata.Tx) error {
		var earlier []string
		if err := tx.ForEachIn(r.space, func(s metadata.Snapshot) error {
			if s.Client < next.Number {
				earlier = append(earlier, s.Key)
			}
			return nil
		}); err != nil {
			return err
		}
		if err := tx.SetClient(r.space, next); err != nil {
			return err
		}
		for _, key := range earlier {
			if err := tx.TakeOver(key); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("record the client, with all snapshots: %w", err)
	}
	r.client = next
	return nil
}

func (r *Registry) process() Process { return process(r.client) }

func process(c metadata.ClientRecord) Process {
	return Process{PID: c.PID, StartTime: c.StartTime, BootID: c.BootID, Program: c.Program}
}

// Accept lets the client remove the snapshots of earlier clients. If the client has not told its installation, later
// clients are not compared with the installations of earlier ones.
func (r *Registry) Accept(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.load(ctx); err != nil {
		return err
	}
	if r.client.Since.IsZero() {
		return fmt.Errorf("no client has used the socket: %w", errdefs.ErrFailedPrecondition)
	}
	next := r.client
	next.Protections, next.AcceptedBefore = nil, next.Number
	if r.mustTell() {
		next.Installation, next.Told = "", nil
	}
	save := r.save
	if r.identity.progress >= told {
		save = r.saveOwn
	}
	if err := save(ctx, next); err != nil {
		return err
	}
	r.earlier = make(numbers)
	return nil
}

// Reset forgets the client and its proxy name, even if it lives. The next process that calls is the client.
func (r *Registry) Reset(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.load(ctx); err != nil {
		return err
	}
	if r.client.Number == 0 { // a record of a further key space makes older thinsnaps refuse the store
		return nil
	}
	next := metadata.ClientRecord{
		Number: r.client.Number, Installation: r.client.Installation, Told: r.client.Told,
		Protections: r.client.Protections, AcceptedBefore: r.client.AcceptedBefore,
	}
	if err := r.save(ctx, next); err != nil {
		return err
	}
	r.identity.end()
	r.handle.close()
	r.handle = nil
	return nil
}

// State describes the client.
type State struct {
	Process      Process
	Proxy        string
	Installation string
	Since        time.Time // zero if there is no client
	Lives        bool
	// Kept is the number of snapshots of earlier clients that the client cannot remove.
	Kept        uint64
	Refused     uint64 // the number of refused calls, since the start
	LastRefused string
}

// State returns the state of the client. If some snapshots may be kept, its cost grows with the key space.
func (r *Registry) State(ctx context.Context) (State, error) {
	client, state, err := r.current(ctx)
	if err != nil || !mayKeep(client) {
		return state, err
	}
	err = r.forEach(ctx, func(s metadata.Snapshot) {
		if isKept(client, s) {
			state.Kept++
		}
	})
	return state, err
}

// current returns the client, and its state without Kept.
func (r *Registry) current(ctx context.Context) (metadata.ClientRecord, State, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.load(ctx); err != nil {
		return metadata.ClientRecord{}, State{}, err
	}
	return r.client, State{
		Process: r.process(), Proxy: r.client.Proxy, Installation: r.client.Installation, Since: r.client.Since,
		Lives: r.handle.lives(), Refused: r.refused, LastRefused: r.lastRefused,
	}, nil
}

// Close stops asking the client, and releases its handle.
func (r *Registry) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.identity.end()
	r.handle.close()
	r.handle = nil
}
