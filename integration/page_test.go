package integration

import (
	"bytes"
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/docker/go-units"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/browser"
	"github.com/thinsnap/thinsnap/internal/admin"
	"github.com/thinsnap/thinsnap/internal/page"
)

var screenshot = flag.String("screenshot", "", "write a picture of TestPageOfARecording's page to this `FILE`")

// small reduces a picture to 256 colours, which takes a third of the space. The edges of letters have many similar
// colours: of these it keeps the most frequent one.
func small(t *testing.T, picture []byte) []byte {
	t.Helper()
	decoded, err := png.Decode(bytes.NewReader(picture))
	require.NoError(t, err)
	count := make(map[color.Color]int)
	bounds := decoded.Bounds()
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			count[decoded.At(x, y)]++
		}
	}
	taken := make(map[[3]uint32]bool)
	var colors color.Palette
	for _, c := range slices.SortedFunc(maps.Keys(count), func(a, b color.Color) int { return cmp.Compare(count[b], count[a]) }) {
		r, g, b, _ := c.RGBA() // 16 bits each
		if alike := [3]uint32{r >> 12, g >> 12, b >> 12}; len(colors) < 256 && !taken[alike] {
			taken[alike] = true
			colors = append(colors, c)
		}
	}
	reduced := image.NewPaletted(bounds, colors)
	draw.Draw(reduced, bounds, decoded, bounds.Min, draw.Src)
	var b bytes.Buffer
	encoder := png.Encoder{CompressionLevel: png.BestCompression}
	require.NoError(t, encoder.Encode(&b, reduced))
	return b.Bytes()
}

// answers is a transport to a daemon that answers with these values.
type answers map[string]any

func (a answers) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := json.Marshal(a[r.URL.Path])
	return &http.Response{
		StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}},
		Body: io.NopCloser(bytes.NewReader(body)), Request: r,
	}, err
}

// manySnapshots is a daemon with n snapshots, of images of 25 layers each. Their keys contain HTML.
func manySnapshots(n int) answers {
	var snapshots []admin.Snapshot
	for i := range n {
		s := admin.Snapshot{Key: fmt.Sprintf("k8s.io/%d/<img src=x onerror=alert(1)>", i), Kind: admin.KindCommitted, DeviceID: uint32(i + 1), Size: 10 << 30}
		if i%25 > 0 {
			s.Parent = snapshots[i-1].Key
		}
		used, shared := uint64(1+i)<<10, uint64(i%25)<<20
		s.Used, s.Shared = &used, &shared
		snapshots = append(snapshots, s)
	}
	space := admin.Space{Used: 95 << 30, Total: 100 << 30, Available: 5 << 30, MinFree: 10 << 30, LowWater: 2 << 30, Level: admin.LevelShort}
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var points []admin.Fill
	for i := range 1000 {
		points = append(points, admin.Fill{At: start.Add(time.Duration(i) * time.Minute), DataUsed: uint64(i) * 95 << 30 / 1000})
	}
	return answers{
		"/v1/info": admin.Info{
			Daemon:    admin.Daemon{Version: "1.2.3", StartedAt: start, UptimeSeconds: 60000},
			Pool:      admin.Pool{Name: "pool", State: admin.StateOutOfDataSpace, NeedsCheck: true, Data: space, Metadata: space},
			Snapshots: admin.SnapshotCounts{Committed: uint64(n)}, Devices: admin.Volumes{Trash: 3},
		},
		"/v1/activity": admin.Activity{
			Running: []admin.RunningCall{{Method: "Prepare", Key: "a", StartedAt: time.Now().Add(-time.Minute)}}, RunningTotal: 1,
			Recent: []admin.EndedCall{{RunningCall: admin.RunningCall{Method: "Commit", Key: "b"}, Outcome: "ResourceExhausted", Seconds: 0.25}},
			Totals: []admin.CallTotal{{Method: "Commit", Ended: 4, Failed: 1, Seconds: 2}},
			Trash:  []admin.Removed{{Key: "c", DeviceID: 7, Since: time.Now().Add(-time.Hour)}}, TrashTotal: 3,
		},
		"/v1/history":   admin.History{Points: points},
		"/v1/snapshots": admin.SnapshotList{Snapshots: snapshots},
		"/v1/owners": admin.Owners{Owners: []admin.Owner{
			{Key: snapshots[0].Key, Images: []string{"<b>a:1</b>", "b:2"}},
			{Key: snapshots[min(7, n-1)].Key, Container: &admin.Container{ID: "c", Pod: "<i>shop", PodNamespace: "prod", Name: "web"}},
		}},
	}
}

// showPage shows the page with a daemon's answers, behind the proxy of `thinsnap page`.
func showPage(t *testing.T, daemon http.RoundTripper, o browser.Options) (p *browser.Page, url string) {
	t.Helper()
	server := httptest.NewServer(page.Proxy(daemon, "secret"))
	t.Cleanup(server.Close)
	p = browser.Open(t, o)
	url = server.URL + "/secret/"
	p.Go(t, url)
	p.Wait(t, "document.body && document.body.dataset.ready")
	return p, url
}

// requireQuiet fails the test if the page has met a problem, or sent a request to another server.
func requireQuiet(t *testing.T, p *browser.Page, url string) {
	t.Helper()
	require.Empty(t, p.Problems())
	require.NotEmpty(t, p.Requests())
	for _, request := range p.Requests() {
		require.True(t, strings.HasPrefix(request, url), request)
	}
}

// TestPageOfManySnapshots: the page is usable with 10,000 snapshots, by keyboard too, and executes no HTML in keys.
func TestPageOfManySnapshots(t *testing.T) {
	p, url := showPage(t, manySnapshots(10000), browser.Options{Width: 1280, Height: 1000, Dark: true})
	require.Equal(t, "out of data space, needs a check", p.Text(t, "state"))
	require.Contains(t, p.Text(t, "data"), "95% full")
	require.Contains(t, p.Text(t, "data"), "no new snapshots")
	require.Equal(t, "10000", p.Text(t, "snapshots-total"))
	require.Contains(t, p.Text(t, "running"), "Prepare")
	require.Contains(t, p.Text(t, "trash"), "volume 7")
	require.Contains(t, p.Text(t, "recent"), "ResourceExhausted in 250ms")
	require.Contains(t, p.Text(t, "totals"), "500ms")
	require.Equal(t, "rgb(18, 22, 27)", browser.Eval[string](t, p, "getComputedStyle(document.body).backgroundColor"))

	require.Equal(t, "10000 snapshots.", p.Text(t, "tree-note"))
	rows := "document.querySelectorAll('#tree .items .row')"
	require.Less(t, browser.Eval[int](t, p, rows+".length"), 80, "the page has only visible rows")
	require.Contains(t, browser.Eval[string](t, p, rows+"[0].innerText"), "<img src=x onerror=alert(1)>")
	current := "document.querySelector('#tree .current .key').title"

	browser.Eval[any](t, p, "document.getElementById('tree').focus()")
	p.Press(t, "End", 35)
	require.Equal(t, "k8s.io/9999/<img src=x onerror=alert(1)>", browser.Eval[string](t, p, current))
	p.Press(t, "ArrowUp", 38)
	p.Press(t, "ArrowLeft", 37)
	require.Equal(t, "9999 of 10000 snapshots listed.", p.Text(t, "tree-note"), "collapsed")
	p.Press(t, "ArrowRight", 39)
	p.Press(t, "Home", 36)
	require.Equal(t, "k8s.io/0/<img src=x onerror=alert(1)>\nimage <b>a:1</b> and 1 other", browser.Eval[string](t, p, current))
	browser.Eval[any](t, p, "document.getElementById('collapse').click()")
	require.Equal(t, "400 of 10000 snapshots listed.", p.Text(t, "tree-note"))
	require.Contains(t, browser.Eval[string](t, p, rows+"[0].innerText"), "+24, own")
	browser.Eval[any](t, p, "document.getElementById('filter').value = '/9998/'; document.getElementById('filter').dispatchEvent(new Event('input'))")
	require.Equal(t, "24 of 10000 snapshots listed.", p.Text(t, "tree-note"), "with its ancestors")
	browser.Eval[any](t, p, "document.getElementById('filter').value = '<i>shop'; document.getElementById('filter').dispatchEvent(new Event('input'))")
	require.Equal(t, "8 of 10000 snapshots listed.", p.Text(t, "tree-note"))
	require.Contains(t, browser.Eval[string](t, p, rows+"[0].innerText"), "image <b>a:1</b> and 1 other")
	require.Contains(t, browser.Eval[string](t, p, rows+"[7].innerText"), "pod prod/<i>shop: web")

	require.Contains(t, p.Text(t, "chart"), "95GiB used now")
	require.Contains(t, browser.Eval[string](t, p, "document.getElementById('chart').textContent"), "no new snapshots (min_free_space)")
	requireQuiet(t, p, url)
}

// TestPageOfSeveralClients: with more than one client, the page shows a snapshot's client.
func TestPageOfSeveralClients(t *testing.T) {
	daemon := manySnapshots(2)
	list, ok := daemon["/v1/snapshots"].(admin.SnapshotList)
	require.True(t, ok)
	list.Snapshots[0].Client, list.Snapshots[1].Client = "default", "default"
	row := "document.querySelector('#tree .items .row')"
	p, url := showPage(t, daemon, browser.Options{})
	require.NotContains(t, browser.Eval[string](t, p, row+".innerText"), "client")
	requireQuiet(t, p, url)

	list.Snapshots[1].Client, list.Snapshots[1].Parent, list.Snapshots[1].Key = "k3s", "", "@k3s/k8s.io/1/a"
	p, url = showPage(t, daemon, browser.Options{})
	require.Contains(t, browser.Eval[string](t, p, row+".innerText"), "client default image <b>a:1</b> and 1 other")
	require.Contains(t, browser.Eval[string](t, p, "document.querySelectorAll('#tree .items .row')[1].innerText"), "client k3s")
	requireQuiet(t, p, url)
}

// replay reads a recording, and moves its times to the present.
func replay(t *testing.T) recording {
	t.Helper()
	content, err := os.ReadFile("testdata/page.json")
	require.NoError(t, err)
	var r recording
	require.NoError(t, json.Unmarshal(content, &r))
	late := time.Since(r.At)
	shift := func(at *time.Time) { *at = at.Add(late) }
	shift(&r.Info.Daemon.StartedAt)
	for i := range r.Activity.Recent {
		shift(&r.Activity.Recent[i].StartedAt)
	}
	for i := range r.Activity.Trash {
		shift(&r.Activity.Trash[i].Since)
	}
	for i := range r.History.Points {
		shift(&r.History.Points[i].At)
	}
	return r
}

// TestPageOfARecording: the page shows the recorded answers of a daemon on a real kernel.
func TestPageOfARecording(t *testing.T) {
	r := replay(t)
	p, url := showPage(t, answers{
		"/v1/info": r.Info, "/v1/activity": r.Activity, "/v1/history": r.History, "/v1/snapshots": admin.SnapshotList{Snapshots: r.Snapshots},
		"/v1/owners": r.Owners,
	}, browser.Options{Width: 1280, Height: 1250})
	size := func(bytes uint64) string { return units.BytesSize(float64(bytes)) }
	require.Equal(t, "read-write", p.Text(t, "state"))
	require.Equal(t, "thinsnap pool "+r.Info.Pool.Name, browser.Eval[string](t, p, "document.querySelector('h1').innerText"))
	for id, want := range map[string]uint64{
		"snapshots-total":     r.Info.Snapshots.Active + r.Info.Snapshots.View + r.Info.Snapshots.Committed,
		"snapshots-active":    r.Info.Snapshots.Active,
		"snapshots-view":      r.Info.Snapshots.View,
		"snapshots-committed": r.Info.Snapshots.Committed,
		"volumes-active":      r.Info.Devices.Active,
		"volumes-spare":       r.Info.Devices.Spares,
		"volumes-trash":       r.Info.Devices.Trash,
		"trash-total":         r.Info.Devices.Trash,
	} {
		require.Equal(t, strconv.FormatUint(want, 10), p.Text(t, id), id)
	}
	for id, space := range map[string]admin.Space{"data": r.Info.Pool.Data, "metadata": r.Info.Pool.Metadata} {
		text := p.Text(t, id)
		require.Contains(t, text, size(space.Used)+" used, "+size(space.Available)+" available")
		require.Contains(t, text, size(space.Total)+" total")
	}
	require.Contains(t, p.Text(t, "trash"), fmt.Sprintf("volume %d", r.Activity.Trash[0].DeviceID))
	require.Contains(t, p.Text(t, "recent"), "Remove")
	require.Contains(t, p.Text(t, "chart"), size(r.Info.Pool.Data.Used)+" used now")
	require.Equal(t, fmt.Sprintf("%d snapshots.", len(r.Snapshots)), p.Text(t, "tree-note"))
	for _, s := range r.Snapshots {
		get := func(what string) string {
			row := fmt.Sprintf("#tree .row[data-key=%q]", s.Key)
			return browser.Eval[string](t, p, fmt.Sprintf("document.querySelector(%q)?.querySelector(%q).textContent ?? ''", row, what))
		}
		require.Equal(t, size(*s.Used), get(".owns"), s.Key)
		require.Equal(t, size(*s.Shared), get(".shares"), s.Key)
		require.Equal(t, s.Kind, get(".kind-"+s.Kind), s.Key)
	}
	requireQuiet(t, p, url)
	if *screenshot != "" {
		require.NoError(t, os.WriteFile(*screenshot, small(t, p.Screenshot(t)), 0o600))
	}
}

// ending is a daemon whose pool can become closed, and which can disappear.
type ending struct {
	daemon        http.RoundTripper
	notOpen, gone atomic.Bool
}

func (e *ending) RoundTrip(r *http.Request) (*http.Response, error) {
	if e.gone.Load() {
		return nil, admin.ErrNoDaemon
	}
	if e.notOpen.Load() {
		body := `{"message": "the pool is not open: no disk", "pool_not_open": true}`
		return &http.Response{
			StatusCode: http.StatusServiceUnavailable, Header: http.Header{"Content-Type": {"application/json"}},
			Body: io.NopCloser(strings.NewReader(body)), Request: r,
		}, nil
	}
	return e.daemon.RoundTrip(r)
}

// TestPageOfADaemonThatEnds: the page says that its data are old.
func TestPageOfADaemonThatEnds(t *testing.T) {
	daemon := &ending{daemon: manySnapshots(3)}
	p, _ := showPage(t, daemon, browser.Options{Width: 400, Height: 800})
	require.Equal(t, "live", p.Text(t, "live"))
	require.False(t, browser.Eval[bool](t, p, "document.documentElement.scrollWidth > innerWidth"), "on a telephone it is not wider than the window")
	daemon.notOpen.Store(true)
	p.Wait(t, "!document.getElementById('notice').hidden")
	require.Equal(t, "the pool is not open: no disk", p.Text(t, "notice"))
	daemon.gone.Store(true)
	p.Wait(t, "document.getElementById('notice').textContent.includes('not answer')")
	require.Contains(t, p.Text(t, "notice"), "does not answer: "+admin.ErrNoDaemon.Error())
	require.Equal(t, "stale", p.Text(t, "live"))
}
