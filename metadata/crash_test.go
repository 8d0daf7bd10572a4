package metadata

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// crashEnv tells this test binary to be the process that gets killed, on this file.
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

// untilKilled makes, commits and removes snapshots with several workers, and prints each thing that is done.
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
				steps := []struct {
					done string
					fn   func(*Tx) error
				}{
					{fmt.Sprint("+a", id), func(tx *Tx) error { return tx.Create(active(fmt.Sprint("a", id), "", id)) }},
					{fmt.Sprint("-a", id, " +c", id), func(tx *Tx) error {
						_, err := tx.Commit(fmt.Sprint("c", id), fmt.Sprint("a", id), CommitChange{Now: noon})
						return err
					}},
					{fmt.Sprint("-c", id), func(tx *Tx) error {
						_, err := tx.Remove(fmt.Sprint("c", id), noon)
						return err
					}},
				}
				for _, step := range steps[:1+id%3] {
					if err := s.Update(ctx, step.fn); err != nil {
						fmt.Fprintln(os.Stderr, err)
						os.Exit(1)
					}
					fmt.Println(step.done) // one write each, so no line is torn
				}
			}
		})
	}
	wg.Wait()
	return nil
}

// TestKilled kills a process that uses a store again and again: all that it was told is done is so, and the store is whole.
func TestKilled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metadata.db")
	exists, pending := map[string]bool{}, map[string]bool{}
	lines := 0
	for round := range 6 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), crashEnv+"="+path)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		in := bufio.NewReader(out)
		killed := false
		end := time.Now().Add(time.Duration(20+rand.IntN(200)) * time.Millisecond)
		for {
			line, err := in.ReadString('\n')
			if err == io.EOF {
				break
			}
			require.NoError(t, err)
			lines++
			for _, word := range strings.Fields(line) {
				exists[word[1:]] = word[0] == '+'
				delete(pending, word[1:])
			}
			if !killed && time.Now().After(end) {
				require.NoError(t, cmd.Process.Kill())
				killed = true
			}
		}
		require.Error(t, cmd.Wait())
		require.True(t, killed)

		copied := filepath.Join(t.TempDir(), fmt.Sprint("copy-", round))
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(copied, b, 0o600))
		s, err := Open(copied, Options{})
		require.NoError(t, err)
		problems, err := s.Check(t.Context())
		require.NoError(t, err)
		require.Empty(t, problems)
		wrong := 0
		view(t, s, func(tx *Tx) {
			for key, want := range exists {
				if tx.Exists(key) != want {
					wrong++ // the next step was done, but not yet told
					exists[key] = !want
				}
			}
		})
		// Each of 8 workers can have had one step under way, which concerns two keys at most.
		require.LessOrEqual(t, wrong, 8)
		view(t, s, func(tx *Tx) {
			for key, want := range exists {
				require.Equal(t, want, tx.Exists(key), key)
			}
		})
		require.NoError(t, s.Close())
	}
	t.Logf("%d acknowledged changes", lines)
	require.Greater(t, lines, 6)
}
