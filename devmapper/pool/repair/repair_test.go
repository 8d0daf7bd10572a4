package repair_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/devmapper/pool/repair"
	"github.com/thinsnap/thinsnap/devmapper/program"
	"github.com/thinsnap/thinsnap/internal/dmtest"
)

func do(ctx context.Context, m repair.Metadata, bytes uint64) (repair.Outcome, error) {
	plan, err := m.Plan(ctx, bytes)
	if err != nil {
		return repair.Outcome{}, err
	}
	return plan.Do(ctx)
}

func TestCheck(t *testing.T) {
	good := newImage(t)
	for damage, want := range map[string]struct {
		damaged, needsCheck bool
		says                string
		treeless            []uint32
		lost                uint64
	}{
		"none":                  {},
		"needs_check":           {needsCheck: true},
		"superblock's checksum": {damaged: true, says: "superblock is corrupt"},
		"superblock":            {damaged: true, says: "superblock is corrupt"},
		"leaf":                  {damaged: true, says: "thin device 5 is missing mappings"},
		"trees":                 {damaged: true, says: "missing all mappings"},
		"list":                  {damaged: true, says: "missing devices"},
		"treeless":              {damaged: true, says: "reference counts differ", treeless: []uint32{volumes}},
		"lost block":            {lost: 1},
	} {
		t.Run(damage, func(t *testing.T) {
			m := spoilt(t, good, damage)
			before := load(t, m.File)
			r, err := repair.Check(t.Context(), m.File)
			require.NoError(t, err)
			require.Equal(t, want.damaged, r.Damaged(), r.Complaints)
			require.Equal(t, want.needsCheck, r.NeedsCheck)
			require.Equal(t, want.treeless, r.Treeless)
			require.Contains(t, strings.Join(r.Complaints, "\n"), want.says)
			require.Equal(t, want.lost, r.Lost)
			require.Equal(t, !want.damaged && !want.needsCheck && want.lost == 0, r.Good())
			require.True(t, bytes.Equal(before, load(t, m.File)))
		})
	}
	_, err := repair.Check(t.Context(), filepath.Join(t.TempDir(), "none"))
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = repair.Check(program.WithDirectories(t.Context(), t.TempDir()), spoilt(t, good, "none").File)
	require.ErrorContains(t, err, "install the package thin-provisioning-tools")
}

func TestRepair(t *testing.T) {
	good := newImage(t)
	for damage, want := range map[string]struct {
		compared bool
		volumes  int
		losses   []repair.Loss
	}{
		"needs_check":           {compared: true, volumes: volumes},
		"superblock's checksum": {compared: true, volumes: volumes},
		"superblock":            {volumes: volumes},
		"superblock's time":     {compared: true, volumes: volumes},
		"superblock's root":     {volumes: volumes},
		"leaf":                  {compared: true, volumes: volumes, losses: []repair.Loss{{Volume: 5, Had: blocksOfEach, Has: 274}}},
		"treeless":              {compared: true, volumes: volumes - 1},
		"lost block":            {compared: true, volumes: volumes},
	} {
		t.Run(damage, func(t *testing.T) {
			m := spoilt(t, good, damage)
			bad := load(t, m.File)
			o, err := do(t.Context(), m, 0)
			require.NoError(t, err)
			require.Equal(t, want.compared, o.Compared)
			require.Equal(t, want.losses, o.Losses)
			require.Equal(t, want.volumes, o.Report.Volumes)
			require.True(t, bytes.Equal(bad, load(t, o.Backup)))
			r, err := repair.Check(t.Context(), m.File)
			require.NoError(t, err)
			require.True(t, r.Good())
			require.Equal(t, r, o.Report)
			if damage == "needs_check" {
				require.True(t, bytes.Equal(good, load(t, m.File)), "only the needs_check flag differs")
			}
			requireOnly(t, m.File, o.Backup)
			for _, file := range []string{m.File, o.Backup} {
				info, err := os.Stat(file)
				require.NoError(t, err)
				require.Equal(t, os.FileMode(0o600), info.Mode())
				require.EqualValues(t, metadataBytes, info.Size())
			}
			_, err = m.Plan(t.Context(), 0)
			require.ErrorIs(t, err, repair.ErrNothingToDo)
		})
	}
}

// requireOnly checks that the directory has no other files.
func requireOnly(t *testing.T, files ...string) {
	t.Helper()
	there, err := filepath.Glob(filepath.Join(filepath.Dir(files[0]), "*"))
	require.NoError(t, err)
	require.ElementsMatch(t, files, there)
}

func TestRepairToALargerFile(t *testing.T) {
	m := spoilt(t, newImage(t), "none")
	plan, err := m.Plan(t.Context(), 2*metadataBytes)
	require.NoError(t, err)
	require.Regexp(t, `truncate --size 8388608 \S+/metadata.new
thin_repair --input \S+/metadata --output \S+/metadata.new
thin_check --clear-needs-check-flag \S+/metadata.new
cp --sparse=always \S+/metadata \S+/metadata.backup-\w+
sync
mv \S+/metadata.new \S+/metadata$`, strings.Join(plan.Lines(), "\n"))
	requireOnly(t, m.File)
	o, err := plan.Do(t.Context())
	require.NoError(t, err)
	require.Empty(t, o.Losses)
	info, err := os.Stat(m.File)
	require.NoError(t, err)
	require.EqualValues(t, 2*metadataBytes, info.Size())
}

// TestUnusableMetadataIsNotInstalled: thin_repair succeeds, but its output is not usable.
func TestUnusableMetadataIsNotInstalled(t *testing.T) {
	good := newImage(t)
	for name, c := range map[string]struct {
		damage string
		change func(m *repair.Metadata)
		repair string // a script in place of thin_repair
		says   string
	}{
		"no list of volumes":   {damage: "list", says: "it has no volumes"},
		"no trees":             {damage: "trees", says: "it has no volumes"},
		"another pool":         {damage: "leaf", change: func(m *repair.Metadata) { m.BlockBytes *= 2 }, says: "blocks of 65536 bytes"},
		"of another moment":    {damage: "leaf", change: func(m *repair.Metadata) { m.TransactionID = 77 }, says: "does not match the store: restore"},
		"a program that fails": {damage: "leaf", repair: "echo not today >&2; exit 1", says: "not today"},
		"nothing was written":  {damage: "leaf", repair: "exit 0", says: "needs a repair itself"},
	} {
		t.Run(name, func(t *testing.T) {
			m := spoilt(t, good, c.damage)
			bad := load(t, m.File)
			if c.change != nil {
				c.change(&m)
			}
			ctx := t.Context()
			if c.repair != "" {
				ctx = replaceTool(t, "thin_repair", c.repair)
			}
			_, err := do(ctx, m, 0)
			require.ErrorIs(t, err, repair.ErrNotRepaired)
			require.ErrorContains(t, err, c.says)
			require.True(t, bytes.Equal(bad, load(t, m.File)))
			requireOnly(t, m.File)
		})
	}
}

// replaceTool returns a context in which a script replaces a program.
func replaceTool(t *testing.T, name, script string) context.Context {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o700))
	return program.WithDirectories(t.Context(), append([]string{dir}, program.Directories()...)...)
}

func TestUndo(t *testing.T) {
	m := spoilt(t, newImage(t), "leaf")
	bad := load(t, m.File)
	_, _, err := m.Undo(t.Context(), false)
	require.ErrorIs(t, err, repair.ErrNoBackup)
	o, err := do(t.Context(), m, 0)
	require.NoError(t, err)
	repaired := load(t, m.File)

	restored, kept, err := m.Undo(t.Context(), false)
	require.NoError(t, err)
	require.Equal(t, o.Backup, restored)
	require.True(t, bytes.Equal(bad, load(t, m.File)))
	require.True(t, bytes.Equal(repaired, load(t, kept)))
	restored, _, err = m.Undo(t.Context(), false)
	require.NoError(t, err)
	require.Equal(t, kept, restored)
	require.True(t, bytes.Equal(repaired, load(t, m.File)), "undone twice")

	// A change of the pool changes the superblock.
	used := bytes.Clone(repaired)
	used[48]++
	require.NoError(t, os.WriteFile(m.File, used, 0o600))
	_, _, err = m.Undo(t.Context(), false)
	require.ErrorIs(t, err, repair.ErrUsedSince)
	require.True(t, bytes.Equal(used, load(t, m.File)))
	_, kept, err = m.Undo(t.Context(), true)
	require.NoError(t, err)
	require.True(t, bytes.Equal(bad, load(t, m.File)))
	require.True(t, bytes.Equal(used, load(t, kept)))

	backups, err := repair.Backups(m.File)
	require.NoError(t, err)
	require.Len(t, backups, 4)
	require.NoError(t, repair.RemoveAll(m.File))
	requireOnly(t, m.File)
}

const helperFile = "THINSNAP_REPAIR_TEST_FILE"

// TestMain is also the program that eachKilled kills. Its first thread makes all of its system
// calls.
func TestMain(m *testing.M) {
	file := os.Getenv(helperFile)
	if file == "" {
		os.Exit(m.Run())
	}
	runtime.LockOSThread()
	metadata := repair.Metadata{File: file, BlockBytes: blockBytes, DataBytes: 4 << 30, TransactionID: transaction, Used: true}
	var err error
	if os.Getenv("UNDO") != "" {
		_, _, err = metadata.Undo(context.Background(), false)
	} else {
		_, err = do(context.Background(), metadata, 0)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// TestKilledAtEveryStep kills a repair, and an undo, in each system call that changes the disk.
func TestKilledAtEveryStep(t *testing.T) {
	_, err := exec.LookPath("strace")
	dmtest.RequireInstalled(t, err)
	first := spoilt(t, newImage(t), "leaf")
	old := load(t, first.File)
	t.Run("repair", func(t *testing.T) {
		eachKilled(t, filepath.Dir(first.File), false, func(m repair.Metadata) {
			if now := load(t, m.File); !bytes.Equal(now, old) {
				r, err := repair.Check(t.Context(), m.File)
				require.NoError(t, err)
				require.True(t, r.Good())
			}
			// A later repair is not hindered.
			_, err := do(t.Context(), m, 0)
			require.True(t, err == nil || errors.Is(err, repair.ErrNothingToDo), err)
			backups, err := repair.Backups(m.File)
			require.NoError(t, err)
			require.True(t, bytes.Equal(old, load(t, backups[0])))
		})
	})
	_, err = do(t.Context(), first, 0)
	require.NoError(t, err)
	repaired := load(t, first.File)
	t.Run("undo", func(t *testing.T) {
		eachKilled(t, filepath.Dir(first.File), true, func(m repair.Metadata) {
			now := load(t, m.File)
			require.True(t, bytes.Equal(now, old) || bytes.Equal(now, repaired))
			_, _, err := m.Undo(t.Context(), false)
			require.NoError(t, err)
		})
	})
}

// eachKilled runs the helper on copies of a directory, kills each run in a different system call,
// and calls f with the copy.
func eachKilled(t *testing.T, dir string, undo bool, f func(repair.Metadata)) {
	t.Helper()
	copied := func() string {
		to := t.TempDir()
		require.NoError(t, os.CopyFS(to, os.DirFS(dir)))
		return filepath.Join(to, "metadata")
	}
	trace := filepath.Join(t.TempDir(), "trace")
	require.NoError(t, helper(copied(), undo, trace, "trace=ftruncate,fsync,renameat,unlinkat,pwrite64").Run())
	counts := make(map[string]int)
	last := ""
	killed := 0
	for line := range strings.Lines(string(load(t, trace))) {
		call, _, isCall := strings.Cut(line, "(")
		counts[call]++
		repeated := call == "pwrite64" && call == last
		last = call
		if !isCall || repeated {
			continue
		}
		file := copied()
		out, err := helper(file, undo, "/dev/null", "trace="+call, "-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", call, counts[call])).CombinedOutput()
		require.ErrorContains(t, err, "killed", "%s of %s: %s", line, trace, out)
		killed++
		f(repair.Metadata{File: file, BlockBytes: blockBytes, DataBytes: 4 << 30, TransactionID: transaction, Used: true})
		backups, err := repair.Backups(file)
		require.NoError(t, err)
		requireOnly(t, append(backups, file)...)
	}
	t.Log("killed", killed, "times:", counts)
	require.Greater(t, killed, 8)
}

// helper returns this test's program under strace with the given -e options.
func helper(file string, undo bool, trace string, e ...string) *exec.Cmd {
	cmd := exec.Command("strace", append(append([]string{"-o", trace, "-e"}, e...), os.Args[0])...)
	cmd.Env = append(os.Environ(), helperFile+"="+file)
	if undo {
		cmd.Env = append(cmd.Env, "UNDO=1")
	}
	return cmd
}
