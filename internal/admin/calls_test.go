package admin

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCalls(t *testing.T) {
	c := newCalls()
	first := c.begin("default", "Prepare", "a")
	second := c.begin("default", "Commit", strings.Repeat("é", 200))
	c.begin("default", "Stat", "a")("NotFound")
	c.begin("default", "Mounts", "a")("Internal")
	c.begin("default", "Remove", "a")("OK")

	var a Activity
	c.report(&a)
	require.EqualValues(t, 2, a.RunningTotal)
	require.Equal(t, "Prepare", a.Running[0].Method, "the oldest first")
	require.Equal(t, strings.Repeat("é", maxKeyBytes/2)+"…", a.Running[1].Key)
	require.Len(t, a.Recent, 2, "a call that only reads is listed only if it failed")
	require.Equal(t, "Remove", a.Recent[0].Method, "the latest first")
	require.Equal(t, "Internal", a.Recent[1].Outcome)

	took := second("ResourceExhausted")
	require.GreaterOrEqual(t, first("OK"), took)
	c.report(&a)
	require.Zero(t, a.RunningTotal)
	require.Empty(t, a.Running)
	failed := make(map[string]uint64)
	for _, total := range a.Totals {
		require.EqualValues(t, 1, total.Ended)
		failed[total.Method] = total.Failed
	}
	require.Equal(t, map[string]uint64{"Commit": 1, "Mounts": 1, "Prepare": 0, "Remove": 0, "Stat": 0}, failed)
}

// TestCallsAreBounded counts all of more calls than are kept.
func TestCallsAreBounded(t *testing.T) {
	c := newCalls()
	var started, ended sync.WaitGroup
	release := make(chan struct{})
	for i := range maxRunning + 10 {
		started.Add(1)
		ended.Go(func() {
			end := c.begin("default", "Prepare", fmt.Sprint(i))
			started.Done()
			<-release
			end("OK")
		})
	}
	started.Wait()
	require.Len(t, c.running, maxRunning)
	var a Activity
	c.report(&a)
	require.EqualValues(t, maxRunning+10, a.RunningTotal)
	require.Len(t, a.Running, maxListed)
	close(release)
	ended.Wait()
	c.begin("default", "Commit", "last")("OK")
	c.report(&a)
	require.Zero(t, a.RunningTotal)
	require.Empty(t, c.running)
	require.Len(t, a.Recent, maxRecent)
	require.Equal(t, "last", a.Recent[0].Key)
	require.Equal(t, "Prepare", a.Recent[1].Method)
}
