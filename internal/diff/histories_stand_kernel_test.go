package diff_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/devmapper/thin"
	"github.com/thinsnap/thinsnap/devmapper/thinmeta"
	"github.com/thinsnap/thinsnap/internal/diff"
	"github.com/thinsnap/thinsnap/internal/dmtest/dmpool"
	"github.com/thinsnap/thinsnap/internal/dmtest/fshistory"
)

// stand is a pool with volumes whose file systems have a history.
type stand struct {
	t    *testing.T
	pool *dmpool.Pool
	dir  string // of mounts
	last thin.ID
	base map[string]thin.ID // with an empty file system, by the layout's name
}

func newStand(t *testing.T) *stand {
	t.Helper()
	// Deleted blocks keep their space in the pool's file until they are used again.
	return &stand{t: t, dir: t.TempDir(), base: map[string]thin.ID{}, pool: dmpool.New(t, 2<<30, 64<<20)}
}

type layout struct {
	name       string
	filesystem string
	mkfs       []string
	options    string // the mount options for writing
	bytes      uint64
	grown      uint64 // the size of the upper volume, if it is larger
	neverCut   bool   // do not test cut: without a journal, the file system would be inconsistent
}

func (s *stand) id() thin.ID { s.last++; return s.last }

func (s *stand) name(id thin.ID) string { return fmt.Sprintf("history-%d-%d", os.Getpid(), id) }

// with activates a volume, and calls f with its device.
func (s *stand) with(id thin.ID, bytes uint64, readOnly bool, f func(dev string)) {
	s.t.Helper()
	_, err := s.pool.Activate(s.name(id), id, bytes, readOnly)
	require.NoError(s.t, err)
	defer func() { require.NoError(s.t, s.pool.Control.Deactivate(s.name(id))) }()
	f(devmapper.NodePath(s.name(id)))
}

// mounted mounts a device, and calls f with the directory.
func (s *stand) mounted(dev, typ string, flags uintptr, options string, f func(dir string)) {
	s.t.Helper()
	dir := filepath.Join(s.dir, filepath.Base(dev))
	require.NoError(s.t, os.MkdirAll(dir, 0o700))
	if typ == filesystem.XFS {
		options += ",nouuid"
	}
	require.NoError(s.t, unix.Mount(dev, dir, typ, flags, options), "mount %s", dev)
	defer func() {
		s.t.Helper()
		require.NoError(s.t, unix.Unmount(dir, 0))
		require.NoError(s.t, os.Remove(dir))
	}()
	f(dir)
}

// empty returns a volume with an empty file system.
func (s *stand) empty(l layout) thin.ID {
	s.t.Helper()
	if id, made := s.base[l.name]; made {
		return id
	}
	id := s.id()
	require.NoError(s.t, s.pool.CreateThin(id))
	s.with(id, l.bytes, false, func(dev string) {
		require.NoError(s.t, filesystem.Make(s.t.Context(), dev, l.filesystem, filesystem.MkfsOptions(l.filesystem, l.mkfs)))
		require.NoError(s.t, filesystem.InitRoot(dev, l.filesystem))
	})
	s.base[l.name] = id
	return id
}

func (s *stand) snapshot(origin thin.ID) thin.ID {
	s.t.Helper()
	id := s.id()
	require.NoError(s.t, s.pool.CreateSnap(id, origin))
	return id
}

func (s *stand) delete(ids ...thin.ID) {
	s.t.Helper()
	for _, id := range ids {
		require.NoError(s.t, s.pool.Delete(id))
	}
}

// lower returns a volume with the layers of an image.
func (s *stand) lower(l layout, layers []fshistory.Script) thin.ID {
	s.t.Helper()
	id := s.empty(l)
	for i, layer := range layers {
		child := s.snapshot(id)
		s.with(child, l.bytes, false, func(dev string) {
			s.mounted(dev, l.filesystem, 0, l.options, func(dir string) {
				run := fshistory.NewRun(dir)
				require.NoError(s.t, run.Apply(layer))
				require.NoError(s.t, run.Close())
			})
		})
		if i > 0 {
			s.delete(id)
		}
		id = child
	}
	return id
}

// side is one volume of a comparison, with its size.
type side struct {
	id    thin.ID
	bytes uint64
}

// state is the state of an upper volume during the comparison.
type state string

const (
	committed state = "committed" // unmounted
	running   state = "running"   // frozen, copied, and written to again
	cut       state = "cut"       // copied without a freeze, as from a virtual machine
)

// upper returns a volume that a script changed.
func (s *stand) upper(l layout, lower thin.ID, script fshistory.Script, state state) side {
	s.t.Helper()
	own, bytes := s.snapshot(lower), max(l.bytes, l.grown)
	id := own
	s.with(own, bytes, false, func(dev string) {
		if l.grown != 0 {
			require.NoError(s.t, filesystem.Grow(dev, l.filesystem, bytes))
		}
		s.mounted(dev, l.filesystem, 0, l.options, func(dir string) {
			run := fshistory.NewRun(dir)
			defer func() { require.NoError(s.t, run.Close()) }()
			require.NoError(s.t, run.Apply(script))
			if state == committed {
				return
			}
			_, err := s.pool.Control.Suspend(s.name(own), devmapper.SuspendOptions{SkipLockFS: state == cut})
			require.NoError(s.t, err)
			id = s.snapshot(own)
			_, err = s.pool.Control.Resume(s.name(own))
			require.NoError(s.t, err)
			require.NoError(s.t, run.Apply(script[:min(len(script), 10)]))
		})
	})
	if id == own {
		return side{id, bytes}
	}
	s.delete(own)
	if state == cut || l.filesystem == filesystem.XFS {
		s.with(id, bytes, false, func(dev string) { require.NoError(s.t, filesystem.Recover(dev, l.filesystem)) })
	}
	return side{id, bytes}
}

// changed returns the ranges that are not on the same blocks of the pool.
func (s *stand) changed(lower, upper thin.ID) []diff.Range {
	s.t.Helper()
	_, err := s.pool.Status(false) // commits
	require.NoError(s.t, err)
	_, targets, err := s.pool.Control.Table(s.pool.Name())
	require.NoError(s.t, err)
	table, err := thin.ParsePoolTable(targets[0].Params)
	require.NoError(s.t, err)
	path, err := blockdev.Path(table.Metadata)
	require.NoError(s.t, err)
	device, err := blockdev.OpenDirect(path)
	require.NoError(s.t, err)
	defer func() { require.NoError(s.t, device.Close()) }()
	m, err := thinmeta.Open(device)
	require.NoError(s.t, err)
	a, err := m.Tree(s.t.Context(), uint32(lower))
	require.NoError(s.t, err)
	b, err := m.Tree(s.t.Context(), uint32(upper))
	require.NoError(s.t, err)
	var ranges []diff.Range
	const block = dmpool.BlockSectors * 512
	for run, err := range thinmeta.Delta(s.t.Context(), a, b) {
		require.NoError(s.t, err)
		ranges = append(ranges, diff.Range{
			Offset: run.Virtual * block, Length: run.Length * block, Lower: run.Left, Upper: run.Right,
		})
	}
	return ranges
}

type verdict struct {
	listing diff.Listing
	differs bool
	report  string // set if the layers differ
}

// compare lists and writes the changes from lower to upper as thinsnap and as containerd do.
func (s *stand) compare(l layout, lower, upper side) (v verdict) {
	s.t.Helper()
	changed := s.changed(lower.id, upper.id)
	s.opened(l, lower, func(a diff.Volume) {
		s.opened(l, upper, func(b diff.Volume) { v = judge(s.t.Context(), a, b, changed) })
	})
	return v
}

// opened calls f with a mounted volume.
func (s *stand) opened(l layout, of side, f func(diff.Volume)) {
	s.t.Helper()
	s.with(of.id, of.bytes, true, func(dev string) {
		file, err := os.Open(dev)
		require.NoError(s.t, err)
		defer func() { require.NoError(s.t, file.Close()) }()
		s.mounted(dev, l.filesystem, unix.MS_RDONLY, "", func(dir string) {
			f(diff.Volume{Root: dir, Device: file, Bytes: of.bytes, Filesystem: l.filesystem})
		})
	})
}

// judge compares both layers byte by byte.
func judge(ctx context.Context, lower, upper diff.Volume, changed []diff.Range) verdict {
	var v verdict
	var listErr error
	ours := func(w io.Writer) error {
		if listErr != nil {
			return listErr
		}
		return diff.WriteTar(ctx, w, upper, v.listing.Changes)
	}
	theirs := func(w io.Writer) error { return archive.WriteDiff(ctx, w, lower.Root, upper.Root) }
	v.listing, listErr = diff.List(ctx, lower, upper, changed)
	var expected bytes.Buffer
	err := theirs(&expected)
	if err == nil {
		same := matching{rest: expected.Bytes()}
		if err = ours(&same); err == nil && len(same.rest) > 0 {
			err = errNotSame
		}
	}
	if v.differs = err != nil; v.differs {
		v.report = fmt.Sprintf("%v\n%s", err, differences(entries(ours), entries(theirs)))
	}
	return v
}

// matching is a writer that fails unless the written bytes equal the expected ones.
type matching struct{ rest []byte }

var errNotSame = errors.New("the layers differ")

func (m *matching) Write(b []byte) (int, error) {
	if !bytes.HasPrefix(m.rest, b) {
		return 0, errNotSame
	}
	m.rest = m.rest[len(b):]
	return len(b), nil
}

// entries returns a line for each entry of a layer, with the digest of its content.
func entries(write func(io.Writer) error) []string {
	r, w := io.Pipe()
	go func() { w.CloseWithError(write(w)) }()
	var lines []string
	for layer := tar.NewReader(r); ; {
		h, err := layer.Next()
		if errors.Is(err, io.EOF) {
			return lines
		}
		content := sha256.New()
		if err == nil {
			_, err = io.Copy(content, layer)
		}
		if err != nil {
			return append(lines, err.Error())
		}
		lines = append(lines, fmt.Sprintf("%q %c mode=%o owner=%d:%d size=%d time=%d to=%q device=%d:%d %q %x", h.Name, h.Typeflag,
			h.Mode, h.Uid, h.Gid, h.Size, h.ModTime.Unix(), h.Linkname, h.Devmajor, h.Devminor, h.PAXRecords, content.Sum(nil)[:4]))
	}
}

// differences returns the lines that only one of two layers has.
func differences(ours, theirs []string) string {
	var b strings.Builder
	for _, line := range ours {
		if !slices.Contains(theirs, line) {
			fmt.Fprintln(&b, "only thinsnap:  ", line)
		}
	}
	for _, line := range theirs {
		if !slices.Contains(ours, line) {
			fmt.Fprintln(&b, "only containerd:", line)
		}
	}
	if b.Len() == 0 {
		return "the order differs"
	}
	return b.String()
}
