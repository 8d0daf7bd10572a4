package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSummarize(t *testing.T) {
	pass := event{Action: "pass", Package: "p", Test: "TestA"}
	skip := event{Action: "skip", Package: "p", Test: "TestA"}
	fail := event{Action: "fail", Package: "p", Test: "TestA"}
	why := event{Action: "output", Package: "p", Test: "TestA", Output: "    a_test.go:7: no kernel: sorry\n"}
	looked := []event{{Action: "start", Package: "p"}}
	broken := event{Action: "fail", Package: "p"}
	for name, test := range map[string]struct {
		unit, kernel []event
		allowed      []string
		want         []string
		ok           bool
	}{
		"pass":                    {[]event{pass}, []event{pass}, nil, []string{"1 passed, 0 failed, 0 skipped"}, true},
		"skipped without kernel":  {[]event{why, skip}, []event{pass}, nil, []string{"1 passed, 0 failed, 0 skipped"}, true},
		"fail after pass":         {[]event{pass}, []event{fail, broken}, nil, []string{"0 passed, 1 failed, 0 skipped"}, true},
		"no result":               {[]event{pass}, []event{{Action: "run", Package: "p", Test: "TestB"}}, nil, []string{"1 passed, 1 failed, 0 skipped"}, true},
		"package fails by itself": {[]event{pass, broken, broken}, []event{pass}, nil, []string{"failed: p", "1 passed, 1 failed, 0 skipped"}, true},
		"nothing": {nil, nil, nil, []string{
			"no unit test ran", "no test ran with a real kernel", "0 passed, 0 failed, 0 skipped",
		}, false},
		"skipped everywhere": {[]event{why, skip}, []event{why, skip}, []string{"p TestB"}, []string{
			"did not run with a real kernel: p TestA", "must not be skipped: p TestA: no kernel: sorry", "0 passed, 0 failed, 1 skipped",
		}, false},
		"only in test-all": {[]event{why, skip}, []event{why, skip}, []string{"p TestA"}, []string{
			"skipped: p TestA: no kernel: sorry", "0 passed, 0 failed, 1 skipped",
		}, true},
		"not with the kernel": {[]event{pass}, []event{why, skip}, []string{"p TestB"}, []string{
			"did not run with a real kernel: p TestA", "1 passed, 0 failed, 0 skipped",
		}, false},
		"allowed subtest": {
			[]event{pass}, []event{pass, {Action: "skip", Package: "p", Test: "TestA/b"}}, []string{"p TestA/b"},
			[]string{"skipped: p TestA/b: no reason given", "1 passed, 0 failed, 1 skipped"}, true,
		},
		"subtest that passes without a kernel only": {
			[]event{pass, {Action: "pass", Package: "p", Test: "TestA/b"}},
			[]event{pass, {Action: "skip", Package: "p", Test: "TestA/b"}}, nil,
			[]string{"did not run with a real kernel: p TestA/b", "2 passed, 0 failed, 0 skipped"}, false,
		},
		"other subtest": {
			[]event{pass}, []event{pass, {Action: "skip", Package: "p", Test: "TestA/b"}}, []string{"p TestA/c"},
			[]string{"must not be skipped: p TestA/b: no reason given", "1 passed, 0 failed, 1 skipped"}, false,
		},
	} {
		t.Run(name, func(t *testing.T) {
			lines, ok := summarize(test.unit, looked, test.kernel, test.allowed)
			require.Equal(t, test.want, lines)
			require.Equal(t, test.ok, ok)
		})
	}
}

// TestSummarizeVulnerabilities: a check that did not happen is a skip, or a failure.
func TestSummarizeVulnerabilities(t *testing.T) {
	pass := []event{{Action: "pass", Package: "p", Test: "TestA"}}
	lines, ok := summarize(pass, nil, pass, nil)
	require.False(t, ok)
	require.Equal(t, []string{"known vulnerabilities were not looked for", "1 passed, 0 failed, 0 skipped"}, lines)
	skip := []event{
		{Action: "output", Package: "p", Test: "Vulnerabilities/x", Output: "    vuln.sh:1: nothing was checked\n"},
		{Action: "skip", Package: "p", Test: "Vulnerabilities/x"},
	}
	lines, ok = summarize(pass, skip, pass, []string{"p Vulnerabilities/x"})
	require.True(t, ok)
	require.Equal(t, []string{"skipped: p Vulnerabilities/x: nothing was checked", "1 passed, 0 failed, 1 skipped"}, lines)
	_, ok = summarize(pass, skip, pass, nil)
	require.False(t, ok)
}

func TestRead(t *testing.T) {
	file := filepath.Join(t.TempDir(), "report.json")
	require.NoError(t, os.WriteFile(file, []byte(`{"Action":"pass","Package":"p","Test":"TestA","Elapsed":1}`+"\n"+`{"Action":"output","Output":"x\n"}`), 0o600))
	events, err := read([]string{file + ".missing", file})
	require.NoError(t, err)
	require.Equal(t, []event{{Action: "pass", Package: "p", Test: "TestA"}, {Action: "output", Output: "x\n"}}, events)
	require.NoError(t, os.WriteFile(file, []byte(`{"Action":`), 0o600))
	_, err = read([]string{file})
	require.ErrorContains(t, err, file)
}
