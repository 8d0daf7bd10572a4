package adopt

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/plugins/snapshots/devmapper"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

// The environment of a process to be killed: run or undo, the fixture's directory, and the number
// of the passed failpoint that kills it, from 1 (0: none).
const (
	killedDo      = "ADOPT_KILLED_DO"
	killedFixture = "ADOPT_KILLED_FIXTURE"
	killedAt      = "ADOPT_KILLED_AT"
)

// TestToBeKilled is the child process of TestKilled.
func TestToBeKilled(t *testing.T) {
	s := fixture{os.Getenv(killedFixture)}
	switch os.Getenv(killedDo) {
	case "run":
		s.run(t)
	case "undo":
		s.undo(t)
	}
}

// killed is a test program in which a failpoint kills the process. It is built with an overlay in
// place of gofail's conversion of the comments.
type killed struct {
	program string
	names   map[string]bool // failpoints that were not passed
}

func buildKilled(t *testing.T) *killed {
	t.Helper()
	dir := t.TempDir()
	k := &killed{program: filepath.Join(dir, "killed.test"), names: make(map[string]bool)}
	replace := make(map[string]string)
	add := func(name, text string) {
		path, err := filepath.Abs(name)
		require.NoError(t, err)
		replace[path] = filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(replace[path], []byte(text), 0o600))
	}
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	failpoint := regexp.MustCompile(`// gofail: var (\w+) struct\{\}`)
	for _, name := range files {
		b, err := os.ReadFile(name)
		require.NoError(t, err)
		if strings.HasSuffix(name, "_test.go") || !failpoint.Match(b) {
			continue
		}
		for _, m := range failpoint.FindAllStringSubmatch(string(b), -1) {
			require.False(t, k.names[m[1]], "%s exists twice", m[1])
			k.names[m[1]] = true
		}
		add(name, failpoint.ReplaceAllString(string(b), `passFailpoint("$1")`))
	}
	add("passfailpoint.go", fmt.Sprintf(`package adopt

import (
	"fmt"
	"os"
	"strconv"
	"syscall"
)

var passedFailpoints int

func passFailpoint(name string) {
	fmt.Println("passed", name)
	if passedFailpoints++; strconv.Itoa(passedFailpoints) == os.Getenv(%q) {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}
`, killedAt))
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	require.NoError(t, err)
	file := filepath.Join(dir, "overlay.json")
	require.NoError(t, os.WriteFile(file, overlay, 0o600))
	out, err := exec.Command("go", "test", "-c", "-overlay", file, "-o", k.program, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	return k
}

// do runs or undoes an adoption in another process, and kills it at the passed failpoint with the
// number at. It returns the passed failpoints.
func (k *killed) do(t *testing.T, s fixture, what string, at int) (passed []string) {
	t.Helper()
	cmd := exec.Command(k.program, "-test.run=^TestToBeKilled$")
	cmd.Env = append(os.Environ(), killedDo+"="+what, killedFixture+"="+s.dir, killedAt+"="+strconv.Itoa(at))
	out, err := cmd.CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "passed "); ok {
			passed = append(passed, name)
		}
	}
	if at == 0 {
		require.NoError(t, err, "%s", out)
		return passed
	}
	require.ErrorContains(t, err, "signal: killed", "%s", out)
	return passed
}

// copied returns a copy of the fixture, which must have no record, because records contain paths.
func (s fixture) copied(t *testing.T) fixture {
	t.Helper()
	c := fixture{inMemory(t)}
	require.NoError(t, os.MkdirAll(c.dir, 0o700))
	require.NoError(t, os.CopyFS(c.dir, os.DirFS(s.dir)))
	k, err := s.kernel()
	require.NoError(t, err)
	c.setKernel(t, k)
	for _, path := range []string{"containerd/io.containerd.metadata.v1.bolt/meta.db", "devmapper/pool.db", "root"} {
		info, err := os.Stat(filepath.Join(s.dir, path))
		require.NoError(t, err)
		require.NoError(t, os.Chmod(filepath.Join(c.dir, path), info.Mode()))
	}
	return c
}

// TestKilled kills an adoption and an undo at each failpoint. A second run has the result of an
// uninterrupted one, and an undo leaves no trace, even if containerd ran in between.
func TestKilled(t *testing.T) {
	k := buildKilled(t)
	first := newFixture(t)
	last := first.copied(t)
	run, undo := k.do(t, last, "run", 0), k.do(t, last, "undo", 0)
	for _, name := range slices.Concat(run, undo) {
		delete(k.names, name)
	}
	require.Empty(t, k.names, "failpoints that no run passes")
	k.whileTheBuiltinRan(t, first, run)
	for meanwhile, change := range map[string]func(*testing.T, fixture){
		"at once":    func(*testing.T, fixture) {},
		"containerd": func(t *testing.T, s fixture) { pull(t, s); refusedCall(t, s) },
	} {
		// The change may come before the renaming, after the renaming back, or in between.
		var want []state
		for _, steps := range [][]func(fixture){
			{func(s fixture) { change(t, s) }},
			{func(s fixture) { change(t, s) }, func(s fixture) { s.run(t) }, func(s fixture) { s.undo(t) }},
			{func(s fixture) { s.run(t) }, func(s fixture) { change(t, s) }, func(s fixture) { s.undo(t) }},
		} {
			s := first.copied(t)
			for _, step := range steps {
				step(s)
			}
			want = append(want, s.state(t))
		}
		for i, where := range run {
			for _, then := range []string{"run", "undo"} {
				t.Run(fmt.Sprintf("%s, %s, %s", where, meanwhile, then), func(t *testing.T) {
					t.Parallel()
					s := first.copied(t)
					k.do(t, s, "run", i+1)
					change(t, s)
					if then == "run" {
						s.run(t)
						s.requireAdopted(t, all...)
					}
					if _, err := Read(s.options().Config.Root); err == nil {
						s.undo(t)
					}
					s.requireBack(t, want...)
				})
			}
		}
		for i, where := range undo {
			t.Run(fmt.Sprintf("%s, %s", where, meanwhile), func(t *testing.T) {
				t.Parallel()
				s := first.copied(t)
				s.run(t)
				k.do(t, s, "undo", i+1)
				change(t, s)
				if _, err := Read(s.options().Config.Root); err == nil {
					_, err := s.tryRun(t)
					require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
					require.ErrorContains(t, err, "--undo")
					s.undo(t)
				}
				s.requireBack(t, want...)
			})
		}
	}
}

// refusedCall makes the changes that containerd makes for a call that thinsnap refuses.
func refusedCall(t *testing.T, s fixture) {
	t.Helper()
	s.meta(t, func(v1 *bolt.Bucket) {
		put(t, v1, "default/snapshots/"+testProxy+"/x", "")
		b := v1.Bucket([]byte("default")).Bucket([]byte("snapshots")).Bucket([]byte(testProxy))
		require.NoError(t, b.Delete([]byte("x")))
		require.NoError(t, b.SetSequence(b.Sequence()+1))
	})
}

// whileTheBuiltinRan has the built-in start before it is blocked, and make a snapshot, which must
// be adopted.
func (k *killed) whileTheBuiltinRan(t *testing.T, first fixture, run []string) {
	t.Helper()
	for i, where := range run {
		s := first.copied(t)
		k.do(t, s, "run", i+1)
		if blocked, err := isBlocked(newRecord(s.options()).poolPath()); err != nil || blocked {
			require.NoError(t, err)
			return
		}
		t.Run(where+", the built-in", func(t *testing.T) {
			t.Parallel()
			s.builtin(t, func(ctx context.Context, pool *devmapper.PoolMetadata) error {
				return prepareKey(ctx, pool, "default/7/new", "default/4/b")
			})
			s.meta(t, nameNew(t))
			require.NoError(t, remove(newRecord(s.options()).poolPath()+savedSuffix))
			before := s.state(t)
			s.run(t)
			s.requireAdopted(t, append([]string{"default/7/new"}, all...)...)
			s.undo(t)
			s.requireBack(t, before)
		})
	}
}
