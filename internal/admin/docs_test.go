package admin

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/thinsnap/thinsnap/integration/vm"
	"github.com/thinsnap/thinsnap/internal/check"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

var update = flag.Bool("update", false, "write the generated parts of docs/metrics.md and docs/api.md")

const (
	metricsDoc = "../../docs/metrics.md"
	alerts     = "../../docs/prometheus/alerts.yml"
	alertTests = "../../docs/prometheus/alerts_test.yml"
	dashboard  = "../../docs/grafana/thinsnap.json"
	runbooks   = "https://github.com/thinsnap/thinsnap/blob/main/docs/troubleshooting.md#"
)

// answering is a backend whose pool is healthy.
type answering struct{ Backend }

func (answering) Info(context.Context) (Info, error) { return Info{}, nil }

func (answering) Ioctls() map[string]uint64 { return map[string]uint64{"DM_TABLE_STATUS": 1} }

// served returns the metrics that a daemon serves after a call and a check.
func served(t *testing.T) []*dto.MetricFamily {
	t.Helper()
	m := NewMetrics(answering{}, "1", "a")
	m.Begin("Prepare", "k")("OK")
	m.ConnectionsLimited("/run/thinsnap/thinsnap.sock")
	m.Checked(check.Report{})
	families, err := m.registry.Gather()
	require.NoError(t, err)
	return families
}

// TestMetricsAreDocumented compares the table in docs/metrics.md with the served metrics.
func TestMetricsAreDocumented(t *testing.T) {
	problems, err := promlint.NewWithMetricFamilies(served(t)).Lint()
	require.NoError(t, err)
	require.Empty(t, problems)

	var table strings.Builder
	table.WriteString("| name | kind | labels | description |\n|---|---|---|---|\n")
	for _, family := range served(t) {
		if !strings.HasPrefix(family.GetName(), "thinsnap_") {
			continue // described by the sentence below the table
		}
		var labels []string
		for _, label := range family.GetMetric()[0].GetLabel() {
			labels = append(labels, "`"+label.GetName()+"`")
		}
		fmt.Fprintf(&table, "| `%s` | %s | %s | %s |\n", family.GetName(), strings.ToLower(family.GetType().String()),
			strings.Join(labels, " "), family.GetHelp())
	}
	table.WriteString("\nThe Prometheus client library adds and describes `go_…` and `process_…`.\n")

	doc, err := os.ReadFile(metricsDoc)
	require.NoError(t, err)
	text, _, found := strings.Cut(string(doc), "| name |")
	require.True(t, found || *update)
	if *update {
		require.NoError(t, os.WriteFile(metricsDoc, []byte(text+table.String()), 0o600))
		return
	}
	require.Equal(t, text+table.String(), string(doc))
}

// ruleFile is the part of a Prometheus rule file that the tests use.
type ruleFile struct {
	Groups []ruleGroup `yaml:"groups"`
}

type ruleGroup struct {
	Name  string `yaml:"name"`
	Rules []rule `yaml:"rules"`
}

type rule struct {
	Alert       string            `yaml:"alert,omitempty"`
	Record      string            `yaml:"record,omitempty"`
	Expr        string            `yaml:"expr"`
	For         string            `yaml:"for,omitempty"`
	Labels      map[string]string `yaml:"labels,omitempty"`
	Annotations map[string]string `yaml:"annotations,omitempty"`
}

func readRules(t *testing.T) []rule {
	t.Helper()
	content, err := os.ReadFile(alerts)
	require.NoError(t, err)
	var file ruleFile
	decoder := yaml.NewDecoder(strings.NewReader(string(content)))
	decoder.KnownFields(true)
	require.NoError(t, decoder.Decode(&file))
	require.Len(t, file.Groups, 1)
	return file.Groups[0].Rules
}

// panel is the part of a Grafana panel that the tests use.
type panel struct {
	ID      int    `json:"id"`
	Title   string `json:"title"`
	Targets []struct {
		Expr string `json:"expr"`
	} `json:"targets"`
}

func readPanels(t *testing.T) []panel {
	t.Helper()
	content, err := os.ReadFile(dashboard)
	require.NoError(t, err)
	var file struct {
		Panels []panel `json:"panels"`
	}
	require.NoError(t, json.Unmarshal(content, &file))
	require.NotEmpty(t, file.Panels)
	return file.Panels
}

// requireServed fails the test if an expression uses a metric that thinsnap does not serve.
func requireServed(t *testing.T, where, expr string) {
	t.Helper()
	names := map[string]bool{"up": true} // a metric of Prometheus itself
	for _, family := range served(t) {
		names[family.GetName()] = true
		if family.GetType() == dto.MetricType_HISTOGRAM {
			for _, part := range []string{"_bucket", "_sum", "_count"} {
				names[family.GetName()+part] = true
			}
		}
	}
	used := regexp.MustCompile(`\b(up|(thinsnap|go|process)_\w+)\b`).FindAllString(expr, -1)
	require.NotEmpty(t, used, where)
	for _, name := range used {
		require.True(t, names[name], "%s uses %s, which is not served", where, name)
	}
}

func TestAlertsUseServedMetrics(t *testing.T) {
	tests, err := os.ReadFile(alertTests)
	require.NoError(t, err)
	runbook, err := os.ReadFile("../../docs/troubleshooting.md")
	require.NoError(t, err)
	headings := strings.Split(string(runbook), "\n")
	for _, r := range readRules(t) {
		requireServed(t, r.Alert, r.Expr)
		require.Contains(t, []string{"warning", "critical"}, r.Labels["severity"], r.Alert)
		require.NotEmpty(t, r.Annotations["summary"], r.Alert)
		require.Equal(t, runbooks+strings.ToLower(r.Alert), r.Annotations["runbook_url"])
		require.Contains(t, headings, "### "+r.Alert, "runbook_url leads to no heading")
		require.Contains(t, string(tests), `alertname="`+r.Alert+`"`, "an alert without a test")
	}
}

func TestDashboardUsesServedMetrics(t *testing.T) {
	ids := make(map[int]bool)
	for _, p := range readPanels(t) {
		require.False(t, ids[p.ID], "two panels with the id %d", p.ID)
		ids[p.ID] = true
		require.NotEmpty(t, p.Targets, p.Title)
		for _, target := range p.Targets {
			requireServed(t, p.Title, target.Expr)
		}
	}
}

// TestExpressionsAreValid runs promtool on the alerts, on their tests and on the dashboard's
// expressions.
func TestExpressionsAreValid(t *testing.T) {
	cache, err := vm.CacheDir()
	require.NoError(t, err)
	promtool := filepath.Join(cache, "debian/prometheus/usr/bin/promtool")
	_, err = os.Stat(promtool)
	if _, said := os.LookupEnv(dmtest.Variable); err != nil && !said {
		t.Skip("needs promtool, which integration/setup.sh installs")
	}
	require.NoError(t, err)
	run := func(args ...string) {
		out, err := exec.CommandContext(t.Context(), promtool, args...).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	run("test", "rules", alertTests)

	panels := ruleFile{Groups: []ruleGroup{{Name: "dashboard"}}}
	for _, p := range readPanels(t) {
		for i, target := range p.Targets {
			panels.Groups[0].Rules = append(panels.Groups[0].Rules, rule{
				Record: fmt.Sprintf("panel_%d_%d", p.ID, i),
				Expr:   strings.NewReplacer("$__rate_interval", "5m", "$instance", ".*", "$job", ".*").Replace(target.Expr),
			})
		}
	}
	content, err := yaml.Marshal(panels)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "panels.yml")
	require.NoError(t, os.WriteFile(file, content, 0o600))
	run("check", "rules", alerts, file)
}

// TestEveryMetricIsUsed fails if a metric is in no alert and in no panel of the dashboard.
func TestEveryMetricIsUsed(t *testing.T) {
	unseen := make(map[string]bool)
	for _, family := range served(t) {
		if strings.HasPrefix(family.GetName(), "thinsnap_") {
			unseen[family.GetName()] = true
		}
	}
	look := func(expr string) {
		maps.DeleteFunc(unseen, func(name string, _ bool) bool { return strings.Contains(expr, name) })
	}
	for _, r := range readRules(t) {
		look(r.Expr)
	}
	for _, p := range readPanels(t) {
		for _, target := range p.Targets {
			look(target.Expr)
		}
	}
	require.Equal(t, []string{"thinsnap_client_alive", "thinsnap_pool_transaction_id", "thinsnap_store_size_bytes"},
		slices.Sorted(maps.Keys(unseen)))
}
