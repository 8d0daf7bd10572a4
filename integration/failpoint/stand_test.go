package failpoint

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
	"github.com/thinsnap/thinsnap/internal/check"
)

const (
	// crashLimit bounds the time in which the daemon's background work reaches a failpoint.
	crashLimit = 10 * time.Second
	// Actions of a failpoint that is passed; see build.sh.
	crash = "return"
	tell  = "print"
)

// stand is a daemon with failpoints and a pool of its own.
type stand struct {
	*harnesstest.Thinsnap
	address string // of the failpoints' server, while the daemon runs
	names   []string
	spares  bool // whether the daemon makes spares
	finds   []check.Kind
}

// newStand returns a daemon that is not started.
func newStand(t *testing.T, name string, o harness.Options) *stand {
	t.Helper()
	tools, err := harness.FindTools("../..")
	require.NoError(t, err)
	o.Program, err = filepath.Abs("../../bin/thinsnap-failpoints")
	require.NoError(t, err)
	require.FileExists(t, o.Program, "integration/failpoint/build.sh makes it")
	s := &stand{address: harnesstest.FreeAddress(t), spares: !o.NoSpares}
	o.Env = []string{"GOFAIL_HTTP=" + s.address}
	if o.Filesystem == "" {
		o.BaseSize, o.MaxSize = "64MiB", "128MiB"
	}
	s.Thinsnap = harnesstest.NewThinsnap(t, tools, "fail-"+strings.ReplaceAll(name, " ", "-"), o)
	return s
}

// start starts the daemon, and reads the list of its failpoints.
func (s *stand) start(t *testing.T) {
	t.Helper()
	s.Start(t)
	if s.names != nil {
		return
	}
	for line := range strings.Lines(s.request(t, http.MethodGet, "", "")) {
		name, _, _ := strings.Cut(line, "=")
		if !ofAdoption(name) {
			s.names = append(s.names, name)
		}
	}
	require.NotEmpty(t, s.names)
}

// ofAdoption reports whether a failpoint belongs to `thinsnap adopt`, which runs without a daemon.
func ofAdoption(failpoint string) bool { return strings.HasPrefix(path.Base(failpoint), "adopt") }

// arm sets the action of failpoints of the running daemon.
func (s *stand) arm(t *testing.T, action string, failpoints ...string) {
	t.Helper()
	s.request(t, http.MethodPut, "failpoints", terms(action, failpoints))
}

func (s *stand) disarm(t *testing.T, failpoint string) {
	t.Helper()
	s.request(t, http.MethodDelete, failpoint, "")
}

func terms(action string, failpoints []string) string {
	var all []string
	for _, name := range failpoints {
		all = append(all, name+"="+action)
	}
	return strings.Join(all, ";")
}

// variable returns the environment variable that arms failpoints of a program at its start.
func variable(action string, failpoints ...string) string {
	return "GOFAIL_FAILPOINTS=" + terms(action, failpoints)
}

func (s *stand) request(t *testing.T, method, path, body string) string {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.address+"/"+path, strings.NewReader(body))
	require.NoError(t, err)
	request.Close = true
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Less(t, response.StatusCode, 300, "%s %s: %s", method, path, answer)
	return string(answer)
}

// passed calls do after the caller armed failpoints with tell, and returns the passed ones in order.
func (s *stand) passed(t *testing.T, do func()) []string {
	t.Helper()
	before, err := os.ReadFile(s.LogFile())
	if !os.IsNotExist(err) {
		require.NoError(t, err)
	}
	do()
	after, err := os.ReadFile(s.LogFile())
	require.NoError(t, err)
	return printedFailpoints(string(after[len(before):]))
}

// printedFailpoints returns the failpoints that have printed a line.
func printedFailpoints(output string) []string {
	var names []string
	for line := range strings.Lines(output) {
		name, ok := strings.CutPrefix(strings.TrimSpace(line), "failpoint print: ")
		if ok && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

func (s *stand) running() bool {
	select {
	case <-s.Ended():
		return false
	default:
		return true
	}
}

// crashed waits for the daemon to end, and reports whether it did.
func (s *stand) crashed() bool {
	select {
	case <-s.Ended():
		return true
	case <-time.After(crashLimit):
		return false
	}
}

// launched starts the daemon with the variables, and waits until it is ready or has ended.
func (s *stand) launched(t *testing.T, env ...string) error {
	t.Helper()
	s.Launch(t, env...)
	for deadline := time.Now().Add(time.Minute); !s.Ready(); time.Sleep(5 * time.Millisecond) {
		if !s.running() {
			return fmt.Errorf("the daemon ended before it was ready")
		}
		require.True(t, time.Now().Before(deadline), "the daemon is not ready")
	}
	return nil
}
