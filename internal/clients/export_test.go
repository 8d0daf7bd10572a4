package clients

import (
	"context"
	"time"
)

// Report has the callbacks of identify.
type Report struct {
	Listens func(bool)
	Told    func(installation string) error
}

// SetIdentify replaces identify.
func SetIdentify(r *Registry, ask func(context.Context, Process, string, Report) error) {
	r.identify = func(ctx context.Context, p Process, proxy string, to report) error {
		return ask(ctx, p, proxy, Report{to.listens, to.told})
	}
}

// SetWait replaces identifyWait.
func SetWait(r *Registry, wait time.Duration) { r.wait = wait }

// IsSilent reports whether the client was found to have no socket of containerd.
func IsSilent(r *Registry) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.identity.progress == silent
}

// HasListed reports whether the client has listed all snapshots of its database.
func HasListed(r *Registry) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.identity.progress == listed
}

// Identify exports identify.
func Identify(ctx context.Context, p Process, proxy string, to Report) error {
	return identify(ctx, p, proxy, report{to.Listens, to.Told})
}

// HasTold reports whether a process is not the client, or its installation is recorded.
func HasTold(r *Registry, pid int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.client.InstallationOf(r.client.Number)
	return ok || r.client.PID != pid || !r.loaded
}

// AskWorker exports askWorker.
func AskWorker(ctx context.Context, p Process) (string, error) { return askWorker(ctx, p) }

// WorkerOf exports workerOf.
func WorkerOf(response []byte) (string, error) { return workerOf(response) }
