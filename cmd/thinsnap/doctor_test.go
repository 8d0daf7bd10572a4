package main

import (
	"context"
	"encoding/json"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/config"
	"github.com/thinsnap/thinsnap/internal/doctor"
)

// diagnosing returns a backend with this report, and the options of the last call.
func diagnosing(report doctor.Report) (backend, *doctor.Options) {
	var asked doctor.Options
	return backend{diagnose: func(_ context.Context, o doctor.Options) doctor.Report {
		asked = o
		return report
	}}, &asked
}

func TestDoctor(t *testing.T) {
	found := doctor.Report{Problems: 1, Warnings: 1, Checks: []doctor.Result{
		{Name: "kernel", Status: doctor.OK, Seen: "Linux 6.1"},
		{Name: "device-mapper", Status: doctor.Problem, Seen: "two\nlines \x1b[2J", Remedy: []string{"modprobe x", "y"}},
		{Name: "udev", Status: doctor.Warning, Seen: "no rules", Remedy: []string{"apt"}},
		{Name: "lvm", Status: doctor.Skipped, Seen: "not used"},
	}}
	b, asked := diagnosing(found)
	r := try(t, false, b, "doctor")
	require.Equal(t, result{exitFailure, `ok       kernel         Linux 6.1
problem  device-mapper  two
                        "lines \x1b[2J"
                            modprobe x
                            y
warning  udev           no rules
                            apt
skipped  lvm            not used
`, "thinsnap: 1 problem found\n"}, r)
	require.True(t, asked.Optional)
	a := &app{configFile: config.DefaultPath, out: io.Discard, errOut: io.Discard, backend: b}
	require.Equal(t, exitFailure, a.run(t.Context(), []string{"thinsnap", "doctor"}))
	require.Equal(t, config.DefaultPath, asked.File)

	r = try(t, false, b, "--config", "/x.toml", "--admin-address", "/run/y.sock", "doctor", "--json")
	require.Equal(t, exitFailure, r.code)
	var read doctor.Report
	require.NoError(t, json.Unmarshal([]byte(r.out), &read))
	require.Equal(t, found, read)
	require.Equal(t, doctor.Options{File: "/x.toml", AdminAddress: "/run/y.sock", Version: readBuild().Version}, *asked)
}

func TestDoctorFindsNothing(t *testing.T) {
	b, _ := diagnosing(doctor.Report{Warnings: 2, Checks: []doctor.Result{{Name: "kernel", Status: doctor.OK, Seen: "Linux 6.1"}}})
	require.Equal(t, result{exitOK, "ok       kernel  Linux 6.1\nno problems found (2 warnings)\n", ""},
		try(t, false, b, "doctor"))
}
