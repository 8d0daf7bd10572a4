// Package powercut kills a machine at some instant while snapshots are being made
// on it, boots it again on the same disk, and sees that all that was acknowledged
// is there.
package powercut

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/powercut/model"
	"github.com/thinsnap/thinsnap/integration/vm"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

// requireGuests skips the test where integration/setup.sh was never run, unless
// the tests with a kernel are promised to run.
func requireGuests(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("boots guests: -short")
	}
	cache, err := vm.CacheDir()
	require.NoError(t, err)
	if _, err := os.Stat(filepath.Join(cache, "kernel")); err != nil {
		require.Empty(t, os.Getenv(dmtest.Variable), "there is no kernel for guests: %v", err)
		t.Skip("there is no kernel for guests: integration/setup.sh brings one")
	}
}

// programs builds what runs in the guest, without the race detector.
func programs(t *testing.T) (thinsnap, workload, agent string) {
	t.Helper()
	dir := t.TempDir()
	build := func(name, pkg string) string {
		path := filepath.Join(dir, name)
		cmd := exec.CommandContext(t.Context(), "go", "build", "-o", path, pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
		return path
	}
	return build("thinsnap", "../../cmd/thinsnap"), build("workload", "./workload"), build("vmrun", "../vm/vmrun")
}

// log collects what the workload prints; a kill may come at any byte.
type log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *log) bytes() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.buf.Bytes())
}

func TestPowerCuts(t *testing.T) {
	requireGuests(t)
	thinsnap, workload, agent := programs(t)
	for _, filesystem := range []string{"ext4", "xfs"} {
		t.Run(filesystem, func(t *testing.T) {
			dir := t.TempDir()
			config := vm.Config{
				Disks:  []vm.Disk{{Path: filepath.Join(dir, "disk"), Size: 8 << 30}},
				Shares: []string{dir},
				Agent:  agent,
			}
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			args := []string{workload, "-thinsnap", thinsnap, "-filesystem", filesystem, "-seed", strconv.FormatUint(seed, 10)}
			m := cut(t, config, args, 10+int(seed%40))

			content, err := json.Marshal(m)
			require.NoError(t, err)
			file := filepath.Join(dir, "model.json")
			require.NoError(t, os.WriteFile(file, content, 0o600))
			again, err := vm.Boot(t.Context(), config)
			require.NoError(t, err)
			defer again.Kill()
			var out bytes.Buffer
			err = again.Run(t.Context(), vm.Command{
				Args: append(args, "-disk", again.Disks()[0], "-verify", file), Stdout: &out, Stderr: &out,
			})
			require.NoError(t, err, "%s\n%s", out.String(), again.Console())
		})
	}
}

// cut runs the workload until so many operations were acknowledged, and a moment
// longer, and then cuts the power.
func cut(t *testing.T, config vm.Config, args []string, operations int) *model.Model {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	guest, err := vm.Boot(ctx, config)
	require.NoError(t, err)
	defer guest.Kill()
	var events log
	var stderr log
	p, err := guest.Start(vm.Command{Args: append(args, "-disk", guest.Disks()[0]), Stdout: &events, Stderr: &stderr})
	require.NoError(t, err)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := p.Wait(); !errors.Is(err, vm.ErrGuestGone) {
			fmt.Fprintln(&stderr, err)
		}
	}()
	for {
		var m model.Model
		n, err := m.Read(bytes.NewReader(events.bytes()))
		require.NoError(t, err)
		if n >= operations {
			break
		}
		select {
		case <-ended:
			require.FailNow(t, "the workload ended by itself", "%s", stderr.bytes())
		case <-ctx.Done():
			require.FailNow(t, "the workload is too slow", "%d operations\n%s", n, stderr.bytes())
		case <-time.After(time.Duration(operations) * 7 * time.Millisecond):
		}
	}
	guest.Kill()
	<-ended
	m := new(model.Model)
	n, err := m.Read(bytes.NewReader(events.bytes()))
	require.NoError(t, err)
	t.Logf("cut after %d operations, with %+v under way", n, m.Doubt)
	return m
}
