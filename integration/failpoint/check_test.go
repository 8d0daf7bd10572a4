package failpoint

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/check"
)

// checkStopped compares the store, the kernel and the pool of a crashed daemon. Differences that its next start removes
// do not count.
func (s *stand) checkStopped(t testing.TB) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(s.Root, "metadata.db")); errors.Is(err, os.ErrNotExist) {
		return // it crashed before it made a store
	}
	// A check with findings fails, but prints its report.
	out, checkErr := s.TryRun(nil, "check", "--json")
	var report check.Report
	require.NoError(t, json.Unmarshal([]byte(out), &report), "%v", checkErr)
	require.Empty(t, s.unexpected(report))
}

// unexpected returns the findings, without those of the kinds that the operation may cause.
func (s *stand) unexpected(report check.Report) []check.Finding {
	return slices.DeleteFunc(report.Findings, func(f check.Finding) bool { return slices.Contains(s.finds, f.Kind) })
}

// check is like checkStopped, for the running daemon.
func (r *trial) check() check.Report {
	r.Helper()
	report, err := r.Admin().Check(r.Context(), false)
	require.NoError(r, err)
	require.Empty(r, r.unexpected(report))
	return report
}

// pendingTime bounds the time in which a daemon makes its spares, which are pending until then.
const pendingTime = 10 * time.Second

// checkTidy is like check, and requires that nothing remains pending.
func (r *trial) checkTidy() check.Report {
	r.Helper()
	for deadline := time.Now().Add(pendingTime); ; time.Sleep(100 * time.Millisecond) {
		report := r.check()
		if len(report.Pending) > 0 && time.Now().Before(deadline) {
			continue
		}
		require.Empty(r, report.Pending)
		return report
	}
}

// checkEmpty requires that a daemon without snapshots has only its base volume and the spares of that.
func (r *trial) checkEmpty() {
	r.Helper()
	for deadline := time.Now().Add(pendingTime); ; {
		report := r.checkTidy()
		info, err := r.Admin().Info(r.Context())
		require.NoError(r, err)
		require.Zero(r, report.Examined.Snapshots)
		if 1+int(info.Devices.Spares) == report.Examined.Volumes || time.Now().After(deadline) {
			require.EqualValues(r, 1+info.Devices.Spares, report.Examined.Volumes)
			return
		}
	}
}
