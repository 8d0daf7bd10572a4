package integration

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/harness"
	"github.com/thinsnap/thinsnap/integration/harness/harnesstest"
	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

var record = flag.String("record", "", "have TestPageOfADaemon run operations of containerd for a while, and write the page's data to this `FILE`")

// recording has the data of a daemon's page at one moment.
type recording struct {
	At        time.Time        `json:"at"`
	Info      admin.Info       `json:"info"`
	Activity  admin.Activity   `json:"activity"`
	History   admin.History    `json:"history"`
	Snapshots []admin.Snapshot `json:"snapshots"`
	Owners    admin.Owners     `json:"owners"`
}

// TestPageOfADaemon compares the data of a daemon's page with the output of the commands. TestPageOfARecording tests
// how the page shows them: an emulated machine is too slow for Chromium.
func TestPageOfADaemon(t *testing.T) {
	dmtest.RequireKernel(t)
	dmtest.NoLeaks(t)
	tools, err := harness.FindTools("..")
	require.NoError(t, err)
	d := harnesstest.StartThinsnap(t, tools, "page")
	if *record != "" {
		recordPage(t, tools, d)
		return
	}
	sn := d.Snapshotter(t)
	write := func(key, parent string, megabytes int, then func()) {
		mounts, err := sn.Prepare(t.Context(), key, parent)
		require.NoError(t, err)
		require.NoError(t, mount.WithTempMount(t.Context(), mounts, func(dir string) error {
			err := os.WriteFile(filepath.Join(dir, key), make([]byte, megabytes<<20), 0o600)
			then()
			return err
		}))
	}
	write("making-layer", "", 3, func() {})
	require.NoError(t, sn.Commit(t.Context(), "layer", "making-layer"))
	write("container", "layer", 2, func() {})
	_, err = sn.View(t.Context(), "look", "layer")
	require.NoError(t, err)

	var told recording
	write("held", "layer", 1, func() {
		require.NoError(t, sn.Remove(t.Context(), "held"))
		url := d.Page(t)
		require.EventuallyWithT(t, func(c *assert.CollectT) { told = pageData(t, c, d, url) }, time.Minute, 200*time.Millisecond)
	})
	used := make(map[string]uint64)
	for _, s := range told.Snapshots {
		used[s.Key] = *s.Used
	}
	require.GreaterOrEqual(t, used["layer"], uint64(3<<20))
	require.GreaterOrEqual(t, used["container"], uint64(2<<20))
	require.Less(t, used["container"], uint64(3<<20), "it shares the rest")
	require.Contains(t, used, "look")
	require.Zero(t, used["look"])
	for _, key := range []string{"look", "container", "layer"} {
		require.NoError(t, sn.Remove(t.Context(), key))
	}
}

// answersOf requests the page's data.
func answersOf(t *testing.T, url string) recording {
	var told recording
	get := func(path string, into any) {
		response, err := http.Get(url + path)
		require.NoError(t, err)
		defer response.Body.Close()
		require.NoError(t, json.NewDecoder(response.Body).Decode(into))
	}
	get("v1/info", &told.Info)
	get("v1/activity", &told.Activity)
	get("v1/history", &told.History)
	get("v1/owners", &told.Owners)
	var snapshots admin.SnapshotList
	get("v1/snapshots?labels=no", &snapshots)
	told.Snapshots, told.At = snapshots.Snapshots, time.Now()
	return told
}

// pageData requests the page's data and compares them with the output of the commands. The daemon may be working
// meanwhile.
func pageData(t *testing.T, c *assert.CollectT, d *harnesstest.Thinsnap, url string) recording {
	told := answersOf(t, url)
	info := d.Info(t)
	assert.Equal(c, info.Pool, told.Info.Pool)
	assert.Equal(c, info.Snapshots, told.Info.Snapshots)
	assert.Equal(c, info.Devices, told.Info.Devices)
	assert.Equal(c, admin.StateReadWrite, info.Pool.State)
	assert.InDelta(c, info.Pool.Data.Total/5, info.Pool.Data.LowWater, float64(info.Pool.BlockSize), "where the pool grows")
	assert.InDelta(c, float64(info.Pool.Data.Used+info.Pool.Data.Available)/10, float64(info.Pool.Data.MinFree), 100, "10% by default")
	assert.Positive(c, info.Pool.Metadata.LowWater)
	assert.EqualValues(c, 1, info.Devices.Trash)
	assert.EqualValues(c, 1, info.Background.Deferred, "it is in use")
	assert.Positive(c, info.Store.Transactions)
	assert.Positive(c, info.Store.CommitSeconds)
	assert.Positive(c, info.Store.Bytes)

	var listed admin.SnapshotList
	require.NoError(t, json.Unmarshal([]byte(d.Run(t, "ls", "--json")), &listed))
	for i := range listed.Snapshots {
		listed.Snapshots[i].Labels = nil
	}
	assert.Equal(c, listed.Snapshots, told.Snapshots)

	if assert.Len(c, told.Activity.Trash, 1) {
		assert.Equal(c, "held", told.Activity.Trash[0].Key)
	}
	if assert.NotEmpty(c, told.Activity.Recent) {
		assert.Equal(c, "Remove", told.Activity.Recent[0].Method)
		assert.Equal(c, "held", told.Activity.Recent[0].Key)
	}
	assert.Empty(c, told.Activity.Running)
	if assert.NotEmpty(c, told.History.Points) {
		assert.Equal(c, info.Pool.Data.Total, told.History.Points[0].DataTotal)
		assert.Positive(c, told.History.Points[0].DataUsed)
	}
	return told
}

// recordPage has containerd work for a while, and writes the page's data to a file. The volume of a removed
// container is in use.
func recordPage(t *testing.T, tools harness.Tools, d *harnesstest.Thinsnap) {
	t.Helper()
	nerdctl := work(t, tools, d)
	url := d.Page(t)
	var held *os.File
	for _, o := range answersOf(t, url).Owners.Owners {
		if o.Container != nil && o.Container.Name == "job-3" {
			for _, s := range answersOf(t, url).Snapshots {
				if s.Key == o.Key {
					var err error
					held, err = os.Open(fmt.Sprintf("/dev/mapper/%s-snap-%d", d.PoolName, s.DeviceID))
					require.NoError(t, err)
				}
			}
		}
	}
	require.NotNil(t, held)
	defer held.Close()
	nerdctl("rm", "job-3")
	var told recording
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		told = answersOf(t, url)
		assert.Len(c, told.Activity.Trash, 1)
		assert.EqualValues(c, 1, told.Info.Devices.Trash)
		assert.EqualValues(c, 1, told.Info.Background.Deferred)
		for _, s := range told.Snapshots {
			assert.NotNil(c, s.Used)
			assert.NotNil(c, s.Exclusive)
		}
	}, time.Minute, 200*time.Millisecond)
	content, err := json.MarshalIndent(told, "", " ")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(*record, content, 0o600))
}

// work runs operations, so that the page has something to show. It returns nerdctl.
func work(t *testing.T, tools harness.Tools, d *harnesstest.Thinsnap) (nerdctl func(args ...string)) {
	t.Helper()
	images := harnesstest.StartRegistry(t, tools)
	c := harnesstest.StartContainerd(t, tools, tools.Releases[0], d.Proxy())
	nerdctl = func(args ...string) { c.Nerdctl(t, harness.ThinsnapName, args...) }
	write := func(name, image string, megabytes int) {
		nerdctl("run", "--name", name, "--net", "none", image,
			"sh", "-c", fmt.Sprintf("dd if=/dev/urandom of=/new-%s bs=1M count=%d && sync", name, megabytes))
	}
	time.Sleep(15 * time.Second)
	nerdctl("pull", "--quiet", images.Busybox)
	nerdctl("pull", "--quiet", images.Debian)
	write("job-1", images.Busybox, 24)
	time.Sleep(10 * time.Second)
	write("job-2", images.Debian, 60)
	write("job-3", images.Busybox, 12)
	nerdctl("commit", "job-2", "result:1")
	nerdctl("rm", "job-2")
	time.Sleep(15 * time.Second)
	write("check-1", "result:1", 16)
	write("check-2", "result:1", 30)
	time.Sleep(15 * time.Second)
	nerdctl("rm", "check-2", "job-1")
	time.Sleep(15 * time.Second)
	return nerdctl
}
