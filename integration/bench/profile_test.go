package bench

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/stretchr/testify/require"
)

// profileTime is the duration of each profile.
const profileTime = 10 * time.Second

// benchProfile writes profiles of a few loads into a directory, if one is given: of thinsnap by Go's profiler and, with
// -perf, of the whole machine under one of the loads.
func benchProfile(s *suite) {
	if *profilesFlag == "" {
		return
	}
	require.NoError(s.b, os.MkdirAll(*profilesFlag, 0o755))
	s.unpackParents()
	image := s.images.Layers16
	loads := map[string]operation{"pull": {
		ready: func(*target, int) []string { s.forget(image); return nil },
		run:   func(t *target, _ []string) error { return s.pull(s.ctx, image, t.name) },
	}}
	for _, op := range s.operations() {
		switch op.name {
		case "Prepare of a child":
			loads["prepare"] = op
		case "Commit of 1 MiB":
			loads["commit"] = op
		case "Prepare and Remove, 8 workers":
			loads["pairs"] = op
		}
	}
	for _, t := range s.targets {
		if t.name != Thinsnap && t.name != Overlayfs {
			continue
		}
		for _, load := range slices.Sorted(maps.Keys(loads)) {
			file := filepath.Join(*profilesFlag, t.name+"-"+load)
			if t.name == Thinsnap {
				s.under(t, loads[load], func() error { return s.profileThinsnap(file + ".pprof") })
			}
			if !*perfFlag || load != "pairs" {
				continue
			}
			var data string
			s.under(t, loads[load], func() (err error) { data, err = s.recordMachine(); return err })
			if data != "" {
				require.NoError(s.b, showMachine(data, file+".perf.txt"))
			}
		}
	}
	s.forget(image)
}

// under repeats an operation and its preparation until watch returns.
func (s *suite) under(t *target, op operation, watch func() error) {
	watched := make(chan error, 1)
	go func() { watched <- watch() }()
	for {
		select {
		case err := <-watched:
			require.NoError(s.b, err)
			s.end()
			return
		default:
		}
		require.NoError(s.b, op.run(t, op.ready(t, 10)))
		s.end()
	}
}

// profileThinsnap writes a CPU profile, which `go tool pprof` reads.
func (s *suite) profileThinsnap(file string) error {
	client := http.Client{Transport: s.admin.Transport()}
	answer, err := client.Get(fmt.Sprintf("http://thinsnap/debug/pprof/profile?seconds=%.0f", profileTime.Seconds()))
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("profile of thinsnap: %s: %s", answer.Status, content)
	}
	return errors.Join(err, os.WriteFile(file, content, 0o644))
}

// recordMachine samples all processes and the kernel, and returns perf's file; "" and a note if perf does not work
// here.
func (s *suite) recordMachine() (data string, err error) {
	data = filepath.Join(s.b.TempDir(), "perf.data")
	recorded, err := exec.Command("perf", "record", "--all-cpus", "--event", "cpu-clock", "--freq", "99", "--output", data,
		"--", "sleep", fmt.Sprint(profileTime.Seconds())).CombinedOutput()
	if err != nil {
		reason, _, _ := strings.Cut(cmp.Or(strings.TrimSpace(string(recorded)), err.Error()), "\n")
		s.report.Note("perf has no profile here: %s", reason)
		return "", nil
	}
	return data, nil
}

// showMachine writes the programs and kernel threads of the samples, and then their functions, the most frequent first.
// Many of the kernel's samples are where it enables interrupts again, because the clock cannot interrupt it earlier.
func showMachine(data, file string) error {
	var shown, failed bytes.Buffer
	for _, by := range []string{"comm", "comm,dso,symbol"} {
		cmd := exec.Command("perf", "report", "--stdio", "--input", data, "--sort", by, "--percent-limit", "0.3")
		cmd.Stdout, cmd.Stderr = &shown, &failed
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("perf report: %w: %s", err, failed.String())
		}
	}
	return os.WriteFile(file, shown.Bytes(), 0o644)
}
