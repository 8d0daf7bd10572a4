package clients_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/containerd/log"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/clients"
)

// logLines receives lines of the log.
type logLines chan string

func (l logLines) Write(line []byte) (int, error) {
	select {
	case l <- string(line):
	default:
	}
	return len(line), nil
}

// logged returns the lines that are logged from now on.
func logged(t *testing.T) logLines {
	t.Helper()
	lines, before := make(logLines, 1000), log.L.Logger.Out
	log.L.Logger.SetOutput(lines)
	t.Cleanup(func() { log.L.Logger.SetOutput(before) })
	return lines
}

// await waits for a line that has all words.
func (l logLines) await(t *testing.T, words ...string) {
	t.Helper()
	end := time.After(time.Minute)
	for {
		select {
		case line := <-l:
			has := 0
			for _, word := range words {
				if strings.Contains(line, word) {
					has++
				}
			}
			if has == len(words) {
				return
			}
		case <-end:
			t.Fatalf("the log has no line with %q", words)
		}
	}
}

// The log says why a process cannot be identified as the containerd before it.
func TestWhyRemovalsAreRefusedIsLogged(t *testing.T) {
	for _, test := range []struct {
		name, reason string
		identify     func(context.Context, clients.Process, string, clients.Report) error
	}{
		{"has no socket", "it has no socket of containerd", clients.Identify},
		{"does not answer", "it has not answered yet", func(ctx context.Context, _ clients.Process, _ string, to clients.Report) error {
			to.Listens(true)
			<-ctx.Done()
			return context.Cause(ctx)
		}},
		{"answers with errors", "invalid UUID", func(_ context.Context, _ clients.Process, _ string, to clients.Report) error {
			to.Listens(true)
			return errors.New("invalid UUID length: 0")
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBench(t)
			b.made(t, "default/1/box")
			lines := logged(t)
			b.restart()
			clients.SetIdentify(b.Registry, test.identify)
			b.waits(0)
			require.NoError(t, b.containerd(t).admit(t.Context()))
			lines.await(t, "level=warning", "/sleep", "the same containerd as before", test.reason)
		})
	}
}
