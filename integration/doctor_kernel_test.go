package integration

import (
	"encoding/json"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/doctor"
)

// diagnosis has the results of `thinsnap doctor` by the names of its checks.
type diagnosis map[string]doctor.Result

// diagnose runs `thinsnap doctor`, and requires that its exit status agrees with its results.
func diagnose(t *testing.T, s *harnesstest.Thinsnap) diagnosis {
	t.Helper()
	out, err := s.TryRun(nil, "doctor", "--json")
	out, _, _ = strings.Cut(out, "\n}")
	var report doctor.Report
	require.NoError(t, json.Unmarshal([]byte(out+"\n}"), &report), "%s: %v", out, err)
	if report.Problems == 0 {
		require.NoError(t, err)
	} else {
		require.ErrorContains(t, err, "exit status 1")
		require.ErrorContains(t, err, "found")
	}
	found := make(diagnosis)
	for _, r := range report.Checks {
		found[r.Name] = r
	}
	return found
}

// require fails unless a check has this status and reports this observation.
func (d diagnosis) require(t *testing.T, status doctor.Status, name, seen string) {
	t.Helper()
	require.Equal(t, status, d[name].Status, "%+v", d[name])
	require.Contains(t, d[name].Seen, seen)
	if status == doctor.Problem {
		require.NotEmpty(t, d[name].Remedy)
	}
}

// TestDoctor runs `thinsnap doctor` at each step from a machine without thinsnap to a container, with each release of
// containerd.
func TestDoctor(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	tools, err := harness.FindTools("..")
	require.NoError(t, err)
	for _, release := range tools.Releases {
		t.Run(release.Name, func(t *testing.T) { testDoctor(t, tools, release) })
	}
}

func testDoctor(t *testing.T, tools harness.Tools, release harness.Release) {
	s := harnesstest.NewThinsnap(t, tools, "doctor", harness.Options{Root: harnesstest.NewDisk(t) + "/root"})
	before := diagnose(t, s)
	for _, name := range []string{"user", "configuration", "kernel", "device-mapper", "loop-devices", "root", "root-file-system"} {
		before.require(t, doctor.OK, name, "")
	}
	before.require(t, doctor.OK, "new-pool", "fallocate --length ")
	before.require(t, doctor.Problem, "socket", "does not exist")
	before.require(t, doctor.Problem, "containerd", "there is no containerd")
	require.NoDirExists(t, s.Root, "it changes nothing")

	s.Start(t)
	setup := harness.Setup{Dir: harnesstest.NewDisk(t)}
	c := harnesstest.StartContainerdWith(t, tools, release, setup)
	unknown := diagnose(t, s)
	unknown.require(t, doctor.OK, "socket", "")
	unknown.require(t, doctor.OK, "daemon", "process ")
	unknown.require(t, doctor.OK, "pool", "rw")
	unknown.require(t, doctor.OK, "client", "no containerd has called yet")
	unknown.require(t, doctor.OK, "containerd", release.Name[len("containerd-"):])
	unknown.require(t, doctor.Problem, "containerd-configuration", "has no thinsnap in proxy_plugins")
	require.Contains(t, unknown["containerd-configuration"].Remedy,
		"thinsnap setup containerd --config "+s.Config()+" --containerd-config "+c.Config())

	written := c.Setup
	written.Proxies = []harness.Proxy{s.Proxy()}
	_, err := harness.NewContainerd(tools, release, written)
	require.NoError(t, err)
	late := diagnose(t, s)
	late.require(t, doctor.OK, "containerd-configuration", "proxy_plugins.thinsnap")
	late.require(t, doctor.OK, "unpacking", "")
	late.require(t, doctor.Problem, "connection", "was started before")

	require.NoError(t, c.Stop())
	require.NoError(t, c.Start())
	c.AwaitSnapshotter(t, harness.ThinsnapName)
	for _, r := range diagnose(t, s) {
		require.NotEqual(t, doctor.Problem, r.Status, "%+v", r)
	}
	well := diagnose(t, s)
	well.require(t, doctor.OK, "connection", "it has loaded the plugin thinsnap")
	well.require(t, doctor.OK, "mounts", "one mount namespace")

	s.Stop(t)
	stopped := diagnose(t, s)
	stopped.require(t, doctor.OK, "new-pool", "was made, as the configuration describes it")
	stopped.require(t, doctor.Problem, "socket", "")
	stopped.require(t, doctor.Skipped, "daemon", "does not run")
}

// TestDoctorOfADaemonThatHangs: doctor reports a daemon that does not answer, and all other checks, in bounded time.
func TestDoctorOfADaemonThatHangs(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	tools, err := harness.FindTools("..")
	require.NoError(t, err)
	s := harnesstest.StartThinsnap(t, tools, "hangs")
	require.NoError(t, syscall.Kill(s.PID(), syscall.SIGSTOP))
	defer func() { require.NoError(t, syscall.Kill(s.PID(), syscall.SIGCONT)) }()
	start := time.Now()
	found := diagnose(t, s)
	require.Less(t, time.Since(start), 2*time.Minute) // 20 s on a fast machine
	found.require(t, doctor.Problem, "daemon", "")
	found.require(t, doctor.OK, "kernel", "")
	found.require(t, doctor.OK, "device-mapper", "")
}

// TestDoctorOfAPoolThatIsNotOpen: doctor reports a missing file of the pool.
func TestDoctorOfAPoolThatIsNotOpen(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	tools, err := harness.FindTools("..")
	require.NoError(t, err)
	s := harnesstest.StartThinsnap(t, tools, "notopen")
	s.Stop(t)
	data := s.Root + "/pool/data"
	require.NoError(t, os.Rename(data, data+".away"))
	diagnose(t, s).require(t, doctor.Problem, "new-pool", "one of its files is missing")
	require.NoError(t, os.Rename(data+".away", data))
}
