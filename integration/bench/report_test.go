package bench

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSeries(t *testing.T) {
	tests := map[string]struct {
		values      []float64
		median, p95 float64
		cell        string
	}{
		"one":  {[]float64{7}, 7, 7, "7"},
		"odd":  {[]float64{3, 1, 2.5}, 2.5, 3, "2.50 ≤3 ×3"},
		"even": {[]float64{4, 1, 2, 3}, 2.5, 4, "2.50 ≤4 ×4"},
		"many": {[]float64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 123.4}, 10.5, 19, "10.5 ≤19 ×20"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := &Series{Values: tt.values}
			require.InDelta(t, tt.median, s.Median(), 0)
			require.InDelta(t, tt.p95, s.P95(), 0)
			require.Equal(t, tt.cell, s.String())
		})
	}
}

func TestReport(t *testing.T) {
	var r Report
	r.Fact("kernel", "6.1")
	r.Add("child", "Prepare", "ms", Overlayfs, 2)
	r.Add("child", "Prepare", "ms", OverlayProxy, 1.5)
	r.Add("child", "Prepare", "ms", Thinsnap, 2)
	r.Add("child", "Prepare", "ms", Thinsnap, 4)
	r.Add("child", "Prepare", "ms", Devmapper, 300).Mark = "*"
	r.Add("child", "Mounts", "ms", Native, 0)
	r.Note("* of %d", 20)
	r.Note("* of %d", 20)
	var table strings.Builder
	require.NoError(t, r.WriteTable(&table))
	require.Equal(t, `kernel: 6.1

median ≤95th percentile ×samples

case            unit  floor  overlayfs  overlayfs-proxy  native  thinsnap  devmapper  thinsnap/overlayfs  thinsnap/overlayfs-proxy  devmapper/thinsnap
child  Prepare  ms           2          1.50                     3 ≤4 ×2   300*       1.50                2                         100
       Mounts   ms                                       0                                                                          

- * of 20
`, table.String())
	encoded, err := json.Marshal(r.Rows[0].Columns[Thinsnap])
	require.NoError(t, err)
	require.JSONEq(t, `{"median": 3, "p95": 4, "samples": 2, "mark": "", "values": [2, 4]}`, string(encoded))
}
