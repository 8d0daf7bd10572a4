package harnesstest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/harness"
)

// Prometheus is a Prometheus that scrapes one daemon every second.
type Prometheus struct{ address string }

// StartPrometheus starts a Prometheus that ends with the test.
func StartPrometheus(t testing.TB, tools harness.Tools, target string) *Prometheus {
	t.Helper()
	dir := t.TempDir()
	p := &Prometheus{address: FreeAddress(t)}
	config := filepath.Join(dir, "prometheus.yml")
	require.NoError(t, os.WriteFile(config, fmt.Appendf(nil, `global:
  scrape_interval: 1s
  scrape_timeout: 1s
scrape_configs:
- job_name: thinsnap
  static_configs:
  - targets: [%q]
`, target), 0o600))
	cmd := exec.Command(tools.Prometheus, "--config.file", config, "--storage.tsdb.path", filepath.Join(dir, "data"),
		"--web.listen-address", p.address)
	process, err := harness.Start(cmd, dir, "prometheus", func() bool {
		response, err := http.Get("http://" + p.address + "/-/ready")
		if err != nil {
			return false
		}
		return response.Body.Close() == nil && response.StatusCode == http.StatusOK
	})
	end(t, process)
	require.NoError(t, err)
	return p
}

// Count returns the present number of series of an expression.
func (p *Prometheus) Count(t testing.TB, expression string) int {
	t.Helper()
	response, err := http.Get("http://" + p.address + "/api/v1/query?query=" + url.QueryEscape(expression))
	require.NoError(t, err)
	defer response.Body.Close()
	var answer struct {
		Status string
		Error  string
		Data   struct{ Result []json.RawMessage }
	}
	require.NoError(t, json.NewDecoder(response.Body).Decode(&answer))
	require.Equal(t, "success", answer.Status, "%s: %s", expression, answer.Error)
	return len(answer.Data.Result)
}
