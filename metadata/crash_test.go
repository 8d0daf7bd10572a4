package metadata

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// crashEnv makes this test binary the process that is killed, with the store in this file.
const crashEnv = "THINSNAP_TEST_METADATA_CRASH"

func TestMain(m *testing.M) {
	if path := os.Getenv(crashEnv); path != "" {
		if err := untilKilled(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// untilKilled creates, commits and removes snapshots with several workers, and prints each finished
// step.
func untilKilled(path string) error {
	s, err := Open(path, Options{})
	if err != nil {
		return err
	}
	ctx := context.Background()
	var (
		wg  sync.WaitGroup
		run LeaseRecord
	)
	if err := s.Update(ctx, func(tx *Tx) (err error) {
		run, err = tx.Lease(100_000)
		return err
	}); err != nil {
		return err
	}
	for w := range uint32(8) {
		wg.Go(func() {
			for id := run.First + w; id < run.Last; id += 8 {
				steps := []func(*Tx) error{
					func(tx *Tx) error { return tx.Create(active(fmt.Sprint("a", id), "", id)) },
					func(tx *Tx) error {
						_, err := tx.Commit(fmt.Sprint("c", id), fmt.Sprint("a", id), CommitChange{Now: noon})
						return err
					},
					func(tx *Tx) error {
						_, err := tx.Remove(fmt.Sprint("c", id), noon)
						return err
					},
				}
				for i, step := range steps[:1+id%3] {
					if err := s.Update(ctx, step); err != nil {
						fmt.Fprintln(os.Stderr, err)
						os.Exit(1)
					}
					fmt.Printf("%d %d\n", id, i+1) // one write, so that no line is torn
				}
			}
		})
	}
	wg.Wait()
	return nil
}

// stage returns the last step of untilKilled for a device id.
func stage(tx *Tx, id uint32) int {
	owner, _ := tx.Owner(id)
	switch {
	case tx.Exists(fmt.Sprint("a", id)):
		return 1
	case tx.Exists(fmt.Sprint("c", id)):
		return 2
	case owner.Kind == OwnerTrash:
		return 3
	default:
		return 0
	}
}

// TestKilled repeatedly kills a process that uses a store. All steps that it printed are stored,
// and the store has no problems.
func TestKilled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metadata.db")
	told := map[uint32]int{}
	lines := 0
	for round := range 6 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), crashEnv+"="+path)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		// Kill it after some steps, at a random moment.
		left, kill := 1+rand.IntN(300), func() { _ = cmd.Process.Kill() }
		for in := bufio.NewScanner(out); in.Scan(); lines++ {
			var (
				id uint32
				at int
			)
			_, err := fmt.Sscan(in.Text(), &id, &at)
			require.NoError(t, err)
			told[id] = at
			if left--; left == 0 {
				time.AfterFunc(time.Duration(rand.IntN(10_000))*time.Microsecond, kill)
			}
		}
		var exit *exec.ExitError
		require.ErrorAs(t, cmd.Wait(), &exit)
		require.False(t, exit.Exited(), "it ended without being killed")

		// Check a copy, so that the next round finds the file as this one left it.
		copied := filepath.Join(t.TempDir(), fmt.Sprint("copy-", round))
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(copied, b, 0o600))
		s, err := Open(copied, Options{})
		require.NoError(t, err)
		problems, err := s.Check(t.Context())
		require.NoError(t, err)
		require.Empty(t, problems)
		view(t, s, func(tx *Tx) {
			for id, at := range told {
				is := stage(tx, id)
				require.GreaterOrEqual(t, is, at, "device %d: a printed step is lost", id)
				require.LessOrEqual(t, is, at+1, "device %d: a step was done that was not called", id)
			}
		})
		require.NoError(t, s.Close())
	}
	t.Logf("%d acknowledged changes", lines)
}
