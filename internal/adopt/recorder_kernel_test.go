package adopt

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/integration/powercut/logwrites"
)

const (
	// diskSize is the size of a disk and of its log in bytes.
	diskSize  = 32 << 20
	logSuffix = ".log"
)

// A disk has one file system. It has a mapped device while its writes are recorded.
type disk struct {
	name string
	at   string // its mount point
	log  *logwrites.Log
	// marks has the log entry of each mark.
	marks []int
}

// A recorder records the writes to two disks: one with the fixture's directory and so containerd's
// databases, and one with thinsnap's root. Marks in both logs give the writes an order across the
// disks.
type recorder struct {
	fixture
	control *devmapper.Control
	disks   [2]*disk
	marks   []string
	dir     string // of the files behind the disks
}

func newRecorder(t *testing.T) *recorder {
	t.Helper()
	// The module may be built in or loaded.
	_ = exec.Command("modprobe", "-q", "dm-log-writes").Run()
	control, err := devmapper.Open()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, control.Close()) })
	r := &recorder{control: control, dir: t.TempDir()}
	r.fixture = fixture{filepath.Join(t.TempDir(), "fixture")}
	r.disks = [2]*disk{
		{name: "adopt-containerd", at: r.fixture.dir}, {name: "adopt-thinsnap", at: r.options().Config.Root},
	}
	return r
}

// record calls fn with the disks mounted. fn marks the end of each action.
func (r *recorder) record(t *testing.T, fn func(mark func(string))) {
	t.Helper()
	r.marks = nil
	defer func() {
		for _, d := range r.disks {
			d.read(t, filepath.Join(r.dir, d.name+logSuffix), len(r.marks))
		}
	}()
	for _, d := range r.disks {
		r.make(t, d.name, func(*os.File) {})
		r.make(t, d.name+logSuffix, func(*os.File) {})
		data, log := r.attach(t, d.name), r.attach(t, d.name+logSuffix)
		defer r.detach(t, data, log)
		device, err := r.control.Activate(d.name, "", []devmapper.Target{
			{Length: diskSize / 512, Type: "log-writes", Params: data.Path + " " + log.Path},
		}, false)
		require.NoError(t, err)
		// The log is complete when the target is removed.
		defer func() { require.NoError(t, r.control.Deactivate(d.name)) }()
		path, err := blockdev.Path(device.Number())
		require.NoError(t, err)
		out, err := exec.Command("mkfs.ext4", "-q", "-F", "-b", "4096", "-N", "256", "-J", "size=4",
			"-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", path).CombinedOutput()
		require.NoError(t, err, "%s", out)
		d.mount(t, path)
		defer d.unmount(t)
		require.NoError(t, errors.Join(os.Chmod(d.at, 0o700), os.Remove(filepath.Join(d.at, "lost+found"))))
	}
	fn(func(text string) {
		for _, d := range r.disks {
			_, err := r.control.Message(d.name, 0, "mark "+strconv.Itoa(len(r.marks)))
			require.NoError(t, err)
		}
		r.marks = append(r.marks, text)
	})
}

// make creates the file behind a disk or a log.
func (r *recorder) make(t *testing.T, name string, write func(f *os.File)) {
	t.Helper()
	f, err := os.Create(filepath.Join(r.dir, name))
	require.NoError(t, err)
	write(f)
	require.NoError(t, errors.Join(f.Truncate(diskSize), f.Close()))
}

func (r *recorder) attach(t *testing.T, name string) *blockdev.Loop {
	t.Helper()
	loop, err := blockdev.LoopAttach(filepath.Join(r.dir, name), blockdev.LoopOptions{})
	require.NoError(t, err)
	return loop
}

func (r *recorder) detach(t *testing.T, loops ...*blockdev.Loop) {
	t.Helper()
	for _, l := range loops {
		require.NoError(t, l.Close())
	}
}

// mount mounts a disk whose file system commits and writes only on request.
func (d *disk) mount(t *testing.T, device string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(d.at, 0o700))
	require.NoError(t, unix.Mount(device, d.at, "ext4", unix.MS_NOATIME, "commit=300,noauto_da_alloc"))
}

func (d *disk) unmount(t *testing.T) {
	t.Helper()
	require.NoError(t, unix.Unmount(d.at, 0))
}

// sync writes all changes to the disks.
func (r *recorder) sync(t *testing.T) {
	t.Helper()
	for _, d := range r.disks {
		f, err := os.Open(d.at)
		require.NoError(t, err)
		require.NoError(t, unix.Syncfs(int(f.Fd())))
		require.NoError(t, f.Close())
	}
}

func (d *disk) read(t *testing.T, path string, marks int) {
	t.Helper()
	device, err := os.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, device.Close()) })
	d.log, err = logwrites.Read(device)
	require.NoError(t, err)
	d.marks = nil
	for i, e := range d.log.Entries {
		if e.Mark == strconv.Itoa(len(d.marks)) { // the kernel adds a mark of its own
			d.marks = append(d.marks, i)
		}
	}
	require.Len(t, d.marks, marks)
}

// A cut is a possible state of both disks at a power failure.
type cut struct {
	after  int // the number of the last mark
	points [2]logwrites.Point
}

// draw draws a cut after mark number first. Half of the cuts are at a mark.
func (r *recorder) draw(random *rand.Rand, first int) cut {
	return r.cutAfter(random, first+random.IntN(len(r.marks)-first), random.IntN(2) == 0)
}

// cutAfter draws a cut at a mark, or between it and the next one.
func (r *recorder) cutAfter(random *rand.Rand, number int, atMark bool) cut {
	c := cut{after: number}
	for i, d := range r.disks {
		end, next := d.marks[number]+1, len(d.log.Entries)
		if number+1 < len(d.marks) {
			next = d.marks[number+1]
		}
		if !atMark {
			end += random.IntN(next - end + 1)
		}
		c.points[i] = d.log.At(random, 0, end)
	}
	return c
}

func (r *recorder) describe(c cut) string {
	text := fmt.Sprintf("after %d %q", c.after, r.marks[c.after])
	for i, d := range r.disks {
		p := c.points[i]
		text += fmt.Sprintf("; %d of %d entries, and %v", p.Settled, len(d.log.Entries), p.Some)
	}
	return text
}

// restore calls fn with the disks mounted in the state of a cut, and the kernel as after a boot.
func (r *recorder) restore(t *testing.T, c cut, fn func()) {
	t.Helper()
	for i, d := range r.disks {
		r.make(t, d.name, func(f *os.File) {
			for _, e := range d.log.Entries[:c.points[i].Settled] {
				require.NoError(t, d.log.Apply(e, f))
			}
			for _, n := range c.points[i].Some {
				require.NoError(t, d.log.Apply(d.log.Entries[n], f))
			}
		})
		loop := r.attach(t, d.name)
		defer r.detach(t, loop)
		d.mount(t, loop.Path)
		defer d.unmount(t)
	}
	r.setKernel(t, kernel{Skip: true, Devices: map[string]IdleDevice{}})
	fn()
}
