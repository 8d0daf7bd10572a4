package integration

import (
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

var updateRule = flag.Bool("update", false, "write deploy/kubernetes/monitoring/prometheusrule.yaml instead of comparing it")

// TestPrometheusRule: the PrometheusRule for Kubernetes has the alerts of docs/prometheus/alerts.yml.
func TestPrometheusRule(t *testing.T) {
	const file = "../deploy/kubernetes/monitoring/prometheusrule.yaml"
	alerts, err := os.ReadFile("../docs/prometheus/alerts.yml")
	require.NoError(t, err)
	var groups any
	require.NoError(t, yaml.Unmarshal(alerts, &groups))
	_, text, found := strings.Cut(string(alerts), "\ngroups:\n")
	require.True(t, found)
	rule := `# Made from docs/prometheus/alerts.yml by go test ./integration -run TestPrometheusRule -update.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: thinsnap
  namespace: kube-system
spec:
  groups:
`
	for line := range strings.Lines(text) {
		if strings.TrimSpace(line) != "" {
			line = "  " + line
		}
		rule += line
	}
	if *updateRule {
		require.NoError(t, os.WriteFile(file, []byte(rule), 0o644))
	}
	var made struct{ Spec any }
	require.NoError(t, yaml.Unmarshal([]byte(rule), &made))
	require.Equal(t, groups, made.Spec)
	present, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, rule, string(present), "run the test with -update")
}
