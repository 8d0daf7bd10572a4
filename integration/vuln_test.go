package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestVulnerabilitiesUnchecked: `make vuln` fails if it could not check. With THINSNAP_NO_NETWORK=1 the
// report has a skip and its reason instead.
func TestVulnerabilitiesUnchecked(t *testing.T) {
	const unreachable = `echo 'govulncheck: fetching vulnerabilities: Get "https://vuln.go.dev/index/modules.json.gz": no such host' >&2; exit 1`
	skip, pass, fail := `"Action":"skip"`, `"Action":"pass"`, `"Action":"fail"`
	for name, c := range map[string]struct {
		govulncheck, noNetwork string
		ok                     bool
		report, never          string
	}{
		"nothing found":                 {"echo No vulnerabilities found.", "", true, pass, skip},
		"found":                         {"exit 3", "", false, fail, skip},
		"found without a network":       {"exit 3", "1", false, fail, skip},
		"found in a tool":               {`case "$*" in *thinsnap/...*|./...) ;; *) exit 3 ;; esac`, "", true, pass, fail},
		"unreachable":                   {unreachable, "", false, fail, skip},
		"unreachable, but no network":   {unreachable, "1", true, skip, fail},
		"does not work, and no network": {"echo cannot load packages >&2; exit 1", "1", false, fail, skip},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			tool, report := filepath.Join(dir, "govulncheck"), filepath.Join(dir, "vuln.json")
			require.NoError(t, os.WriteFile(tool, []byte("#!/bin/sh\n"+c.govulncheck+"\n"), 0o700))
			cmd := exec.Command("./vuln.sh", tool, report)
			cmd.Env = append(os.Environ(), "THINSNAP_NO_NETWORK="+c.noNetwork)
			out, err := cmd.CombinedOutput()
			require.Equal(t, c.ok, err == nil, "%s", out)
			events, err := os.ReadFile(report)
			require.NoError(t, err)
			require.Contains(t, string(events), c.report)
			require.NotContains(t, string(events), c.never)
			if c.report == skip {
				require.Contains(t, string(events), "cannot be reached; nothing was checked")
			}
		})
	}
}
