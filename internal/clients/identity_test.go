package clients_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/clients"
)

// answers makes processes answer when the test sends the answer.
func (b *bench) answers() chan<- string {
	answer := make(chan string)
	b.ask(func(ctx context.Context, _ clients.Process, _ string) (string, error) {
		select {
		case installation := <-answer:
			return installation, nil
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	})
	return answer
}

// await waits until an installation of containerd is recorded for the client.
func (b *bench) await(t *testing.T, installation string) {
	t.Helper()
	require.Eventually(t, func() bool {
		state, err := b.State(t.Context())
		return err == nil && state.Installation == installation
	}, time.Minute, time.Millisecond)
}

// waits sets identifyWait.
func (b *bench) waits(wait time.Duration) { clients.SetWait(b.Registry, wait) }

// made lets a containerd create snapshots, tell the installation "one", and end.
func (b *bench) made(t *testing.T, keys ...string) {
	t.Helper()
	b.knows("one")
	c := b.containerd(t)
	for _, key := range keys {
		c.prepare(t, key, "")
	}
	b.await(t, "one")
	c.kill()
}

// Another containerd answers only after its removals have stopped waiting. Its numbers are higher.
func TestSlowOtherInstallation(t *testing.T) {
	b := newBench(t)
	b.made(t, "default/1/box", "default/2/box")
	b.waits(0)
	answer := b.answers()
	other := b.containerd(t)
	other.prepare(t, "default/50/box", "")
	sn := other.sn(t)
	for range 2 {
		requireRefused(t, sn.Remove(t.Context(), "default/1/box"), "does not know yet whether process", "/sleep) is the same containerd", "client accept")
		b.restart()
		b.waits(0)
		sn = other.sn(t)
	}
	require.NoError(t, sn.Remove(t.Context(), "default/50/box"), "its own")
	answer <- "two"
	b.await(t, "two")
	requireRefused(t, sn.Remove(t.Context(), "default/1/box"), "is kept")

	require.NoError(t, b.Accept(t.Context()))
	require.NoError(t, sn.Remove(t.Context(), "default/1/box"))
}

// The same containerd may remove unknown snapshots as soon as it has told its UUID, before it has
// listed its snapshots.
func TestSlowContainerd(t *testing.T) {
	b := newBench(t)
	b.made(t, "default/1/box", "default/2/box", "other/7/box")
	b.waits(time.Hour)
	lists := make(chan struct{})
	clients.SetIdentify(b.Registry, func(ctx context.Context, _ clients.Process, _ string, to clients.Report) error {
		to.Listens(true)
		err := to.Told("one")
		<-lists
		_, statErr := b.Guard(b.inner).Stat(ctx, "other/7/box")
		return errors.Join(err, statErr)
	})
	c := b.containerd(t)
	c.prepare(t, "default/3/box", "")
	require.NoError(t, c.sn(t).Remove(t.Context(), "default/1/box"))
	// The list may show that it knows the snapshot that it removes.
	removed := make(chan error, 1)
	sn := c.sn(t)
	go func() { removed <- sn.Remove(t.Context(), "other/7/box") }()
	close(lists)
	require.NoError(t, <-removed)
}

// Until a restored containerd has listed its snapshots, it is unknown which ones its database
// lacks. A snapshot with a number that was given before is not created, and nothing is kept.
func TestListThatTakesLong(t *testing.T) {
	b := newBench(t)
	b.made(t, "default/1/known", "default/2/lost", "other/1/known", "other/2/lost")
	b.waits(0)
	lists := make(chan struct{})
	clients.SetIdentify(b.Registry, func(ctx context.Context, _ clients.Process, _ string, to clients.Report) error {
		to.Listens(true)
		if err := to.Told("one"); err != nil {
			return err
		}
		<-lists
		_, err := b.Guard(b.inner).Stat(ctx, "other/1/known")
		return err
	})
	c := b.containerd(t)
	sn := c.sn(t)
	_, err := sn.Stat(t.Context(), "default/1/known")
	require.NoError(t, err, "a call that belongs to the list does not wait")
	for range 2 {
		_, err = sn.Prepare(t.Context(), "default/2/box", "")
		require.ErrorIs(t, err, errdefs.ErrUnavailable)
		require.ErrorContains(t, err, "has listed its snapshots")
		requireKept(t, b, 0)
	}
	_, err = sn.Prepare(t.Context(), "default/3/box", "")
	require.NoError(t, err, "a new number")
	close(lists)
	require.Eventually(t, func() bool {
		_, err = sn.Prepare(t.Context(), "default/2/box", "")
		return err == nil
	}, time.Minute, time.Millisecond)
	requireKept(t, b, 2)
	require.NoError(t, sn.Remove(t.Context(), "other/1/known"))
	for _, key := range []string{"default/2/lost", "other/2/lost"} {
		requireRefused(t, sn.Remove(t.Context(), key), "is kept")
	}
}

// A program without a socket of containerd tells nothing, and none of its calls waits.
func TestProgramWithoutASocket(t *testing.T) {
	b := newBench(t)
	b.waits(time.Hour)
	first := b.containerd(t)
	for _, key := range []string{"buildkit/1/a", "buildkit/2/b", "buildkit/3/c"} {
		first.prepare(t, key, "")
	}
	first.kill()
	again := b.containerd(t)
	sn := again.sn(t)
	require.Eventually(t, func() bool { return clients.IsSilent(b.Registry) }, time.Minute, time.Millisecond)
	_, err := sn.Stat(t.Context(), "buildkit/1/a")
	require.NoError(t, err)
	requireRefused(t, sn.Remove(t.Context(), "buildkit/2/b"), "is kept", "nothing shows that process")
	again.prepare(t, "buildkit/2/again", "") // a number that was given before
	requireRefused(t, sn.Remove(t.Context(), "buildkit/2/b"), "is kept")
	require.NoError(t, sn.Remove(t.Context(), "buildkit/1/a"))
}

// A program cannot show that it is the containerd before it: that one's snapshots are kept until an
// accept. The same holds for the next program.
func TestProgramAfterAContainerd(t *testing.T) {
	b := newBench(t)
	b.made(t, "default/1/box", "default/2/box")
	b.askNone()
	b.waits(0)
	program := b.containerd(t)
	program.prepare(t, "default/50/box", "")
	sn := program.sn(t)
	require.NoError(t, sn.Remove(t.Context(), "default/50/box"))
	requireRefused(t, sn.Remove(t.Context(), "default/1/box"), "does not know yet")
	require.NoError(t, b.Accept(t.Context()))
	require.NoError(t, sn.Remove(t.Context(), "default/1/box"))
	program.prepare(t, "default/51/box", "")
	program.kill()

	program = b.containerd(t)
	program.prepare(t, "default/52/box", "")
	requireRefused(t, program.sn(t).Remove(t.Context(), "default/51/box"), "nothing shows that process")
	requireKept(t, b, 1)
	require.NoError(t, b.Accept(t.Context()))
	require.NoError(t, program.sn(t).Remove(t.Context(), "default/51/box"))
	state, err := b.State(t.Context())
	require.NoError(t, err)
	require.Empty(t, state.Installation)
}

// A client is asked until it has given all answers, and its identity is recorded.
func TestClientIsAskedAgain(t *testing.T) {
	b := newBench(t)
	b.made(t, "default/1/box")
	b.waits(0)
	failures := make(chan error, 10)
	clients.SetIdentify(b.Registry, func(_ context.Context, _ clients.Process, _ string, to clients.Report) error {
		to.Listens(true)
		if len(failures) == 2 {
			return to.Told("two")
		}
		err := errors.New("it does not answer")
		failures <- err
		return err
	})
	c := b.containerd(t)
	c.prepare(t, "default/50/box", "")
	b.await(t, "two")
	requireRefused(t, c.sn(t).Remove(t.Context(), "default/1/box"), "is kept")
	require.NoError(t, b.Reset(t.Context()))

	told := make(chan error, 10)
	clients.SetIdentify(b.Registry, func(_ context.Context, _ clients.Process, _ string, to clients.Report) error {
		require.NoError(t, b.store.Close())
		told <- to.Told("three")
		return nil
	})
	require.NoError(t, c.admit(t.Context()))
	require.ErrorContains(t, <-told, "record the identity")
}
