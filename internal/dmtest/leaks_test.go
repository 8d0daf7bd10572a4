package dmtest

import (
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestInventoryMinus(t *testing.T) {
	tests := map[string]struct {
		before, after inventory
		want          []string
	}{
		"nothing":       {nil, nil, nil},
		"same":          {inventory{"a": 2}, inventory{"a": 2}, nil},
		"less is fine":  {inventory{"a": 2, "b": 1}, inventory{"a": 1}, nil},
		"new":           {inventory{"a": 1}, inventory{"a": 1, "c": 1, "b": 1}, []string{"b", "c"}},
		"more of it":    {inventory{"a": 1}, inventory{"a": 2}, []string{"a"}},
		"twice as much": {inventory{"a": 1}, inventory{"a": 3}, []string{"a (2 times)"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, tt.want, tt.after.minus(tt.before))
		})
	}
}

// recorder is a test whose clean-ups, skips and errors another test checks. It continues after all
// of them.
type recorder struct {
	testing.TB
	cleanup               func()
	skips, errors, fatals []string
}

func (r *recorder) Cleanup(f func()) { r.cleanup = f }
func (r *recorder) Errorf(format string, args ...any) {
	r.errors = append(r.errors, fmt.Sprintf(format, args...))
}
func (r *recorder) Skipf(format string, args ...any) {
	r.skips = append(r.skips, fmt.Sprintf(format, args...))
}
func (r *recorder) Fatalf(format string, args ...any) {
	r.fatals = append(r.fatals, fmt.Sprintf(format, args...))
}

func TestNoLeaksFindsOpenFiles(t *testing.T) {
	r := &recorder{TB: t}
	noLeaks(r, 0)
	f, err := os.Open(os.DevNull)
	require.NoError(t, err)
	r.cleanup()
	require.Equal(t, []string{"left behind after the test:\n  open file /dev/null"}, r.errors)

	require.NoError(t, f.Close())
	r.errors = nil
	r.cleanup()
	require.Empty(t, r.errors)
}

func TestRequireKernelObeysVariable(t *testing.T) {
	t.Setenv(Variable, "0")
	r := &recorder{TB: t}
	RequireKernel(r)
	require.Equal(t, []string{"needs a kernel with dm-thin and root: THINSNAP_KERNEL_TESTS=0"}, r.skips)

	t.Setenv(Variable, "yes")
	RequireKernel(r)
	require.Equal(t, []string{`THINSNAP_KERNEL_TESTS is "yes": it may be 0, 1 or unset`}, r.fatals)
}
