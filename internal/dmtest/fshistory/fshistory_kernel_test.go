package fshistory_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/filesystem"
	"github.com/thinsnap/thinsnap/internal/dmtest"
	"github.com/thinsnap/thinsnap/internal/dmtest/fshistory"
)

// TestEveryChangeIsMade: a change that the kernel always refuses would test nothing.
func TestEveryChangeIsMade(t *testing.T) {
	for _, typ := range []string{filesystem.Ext4, filesystem.XFS} {
		t.Run(typ, func(t *testing.T) {
			dmtest.RequireKernel(t)
			dmtest.NoLeaks(t)
			dir := t.TempDir()
			image, root := filepath.Join(dir, "image"), filepath.Join(dir, "root")
			require.NoError(t, os.WriteFile(image, nil, 0o600))
			require.NoError(t, os.Truncate(image, 400<<20))
			require.NoError(t, os.Mkdir(root, 0o700))
			loop, err := blockdev.LoopAttach(image, blockdev.LoopOptions{})
			require.NoError(t, err)
			defer func() { require.NoError(t, loop.Close()) }()
			require.NoError(t, filesystem.Make(t.Context(), loop.Path, typ, []string{}))
			require.NoError(t, unix.Mount(loop.Path, root, typ, 0, ""))
			defer func() { require.NoError(t, unix.Unmount(root, 0)) }()

			done, failed, total := map[string]int{}, map[string]int{}, 0
			missing := fshistory.Names(typ)
			for seed := uint64(0); len(missing) > 0 && seed < 25; seed++ {
				below := filepath.Join(root, string(rune('a'+seed)))
				require.NoError(t, os.Mkdir(below, 0o755))
				g := fshistory.New(seed, typ)
				run := fshistory.NewRun(below)
				for _, script := range []fshistory.Script{g.Image(60), g.Changes(150)} {
					require.NoError(t, run.Apply(script))
				}
				require.NoError(t, run.Close())
				for name, n := range run.Done {
					done[name] += n
					total += n
				}
				for name, n := range run.Failed {
					failed[name] += n
				}
				missing = slices.DeleteFunc(missing, func(name string) bool { return done[name] > 0 })
			}
			t.Logf("%d changes succeeded; failures: %v", total, failed)
			require.Empty(t, missing, "changes that no history made")
		})
	}
}
