package plan

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// The writes of an adoption below thinsnap's root, in bytes.
const (
	roomForSnapshot = 4096 // more than the size of a record
	roomForRest     = 1 << 20
)

// checkRoom checks the free space on the disk of thinsnap's root. The adoption needs it for the backups of the
// databases, the new store, and a copy of containerd's database for the rehearsal of the renaming.
func (g *gatherer) checkRoom() {
	need := uint64(roomForRest + roomForSnapshot*2*len(g.databases.Snapshots))
	meta := filepath.Join(g.options.ContainerdRoot, "io.containerd.metadata.v1.bolt", "meta.db")
	for path, copies := range map[string]uint64{
		meta: 3,
		filepath.Join(g.options.RootPath, "metadata.db"):        1,
		filepath.Join(g.options.RootPath, g.options.Pool+".db"): 1,
	} {
		if info, err := os.Stat(path); err == nil { // else it is already an obstacle
			need += copies * uint64(info.Size())
		}
	}
	root := g.options.Config.Root
	var st unix.Statfs_t
	err := unix.Statfs(root, &st)
	for dir := root; errors.Is(err, fs.ErrNotExist) && dir != filepath.Dir(dir); {
		dir = filepath.Dir(dir)
		err = unix.Statfs(dir, &st)
	}
	switch free := st.Bavail * uint64(st.Bsize); {
	case err != nil:
		g.fail(root, err)
	case free < need:
		g.obstruct(root, "make room on its disk, or give thinsnap another root",
			"its disk has %d bytes free, and backups and the new store need up to %d", free, need)
	}
}
