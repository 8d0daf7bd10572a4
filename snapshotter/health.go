package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/thinsnap/thinsnap/devmapper"
	"github.com/thinsnap/thinsnap/devmapper/blockdev"
	"github.com/thinsnap/thinsnap/devmapper/pool"
	"github.com/thinsnap/thinsnap/devmapper/pool/repair"
	"github.com/thinsnap/thinsnap/metadata"
)

const (
	// loopTries and loopPause bound the wait for the kernel to let a loop device go after the pool on it.
	loopTries = 50
	loopPause = 20 * time.Millisecond
)

// Mendable is errdefs.ErrNotImplemented for a pool that somebody else made, of which
// nothing but our own volumes is touched.
func (p StoredPool) Mendable() error {
	if p.rec.Mode != metadata.ModeExisting {
		return nil
	}
	return fmt.Errorf("thinsnap has not made this pool, and neither checks nor repairs its metadata: whoever made it has to "+
		"(for LVM's, `lvconvert --repair VG/LV` while it is not active): %w", errdefs.ErrNotImplemented)
}

// TakeOut takes the pool, with every volume of it, out of the kernel, if it is there.
// It is errdefs.ErrUnavailable, and all is still there, while a volume is in use, which
// the error names.
func (p StoredPool) TakeOut(ctx context.Context, control *devmapper.Control) error {
	loaded, err := p.OpenLoaded(control)
	if errors.Is(err, devmapper.ErrNotFound) {
		return nil
	}
	if err != nil {
		return Classified(err)
	}
	volumes, err := loaded.Active(ctx)
	if err != nil {
		return err
	}
	var used []string
	for _, vol := range volumes {
		if vol.OpenCount > 0 {
			used = append(used, vol.Path+mountpoints(vol.Device.Number()))
		}
	}
	if len(used) > 0 {
		return fmt.Errorf("pool %s is in use: stop the containers and unmount what is mounted from it: %s: %w",
			p.rec.Name, strings.Join(used, ", "), errdefs.ErrUnavailable)
	}
	return Classified(loaded.Close(ctx))
}

// mountpoints says where a device is mounted, as far as this mount name space knows.
func mountpoints(number string) string {
	// A line is ID PARENT MAJ:MIN ROOT MOUNTPOINT ... (proc_pid_mountinfo(5)).
	lines, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	var at []string
	for line := range strings.Lines(string(lines)) {
		if fields := strings.Fields(line); len(fields) > 4 && fields[2] == number {
			at = append(at, fields[4])
		}
	}
	if at == nil {
		return ""
	}
	return " on " + strings.Join(at, " and ")
}

// CheckMetadata has thin_check look at the metadata of the pool, which must have been
// formed and must not be in the kernel. In a pool of LVM's, LVM shows it there for the
// moment.
func (p StoredPool) CheckMetadata(ctx context.Context) (report repair.Report, err error) {
	if p.rec.Mode == ModeDirectLVM {
		err = pool.OnMetadataLVM(ctx, lvmSpec(p.rec), func(path string) (err error) {
			report, err = repair.Check(ctx, path)
			return err
		})
		return report, refused(err)
	}
	m, err := p.RepairableMetadata(ctx)
	if err != nil {
		return report, err
	}
	return repair.Check(ctx, m.File)
}

// RepairableMetadata is the metadata of the pool, which must have been formed and must
// not be in the kernel. It is errdefs.ErrNotImplemented for a pool of LVM's, with the
// commands that repair it.
func (p StoredPool) RepairableMetadata(ctx context.Context) (repair.Metadata, error) {
	if p.rec.Mode == ModeDirectLVM {
		lines, old := lvmSpec(p.rec).RepairLines()
		return repair.Metadata{}, fmt.Errorf("the pool was made by LVM, which keeps its metadata: "+
			"if `thinsnap pool check` finds something wrong, repair it with `%s`, which leaves the old metadata in %s; "+
			"then start thinsnap, and run `thinsnap check`: %w",
			strings.Join(lines, " && "), old, errdefs.ErrNotImplemented)
	}
	data, err := os.Stat(p.rec.Loop.DataFile)
	if err != nil {
		return repair.Metadata{}, err
	}
	return repair.Metadata{
		File:          p.rec.Loop.MetadataFile,
		BlockBytes:    p.rec.BlockSize,
		DataBytes:     uint64(data.Size()),
		TransactionID: p.rec.TransactionID,
		Used:          p.rec.TransactionID > 0,
	}, notOnLoop(ctx, p.rec.Loop.MetadataFile)
}

// notOnLoop sees that no loop device stands on a file: whoever has it goes on with what
// is replaced.
func notOnLoop(ctx context.Context, file string) error {
	info, err := os.Lstat(file)
	if err != nil {
		return err
	}
	for tries := 1; ; tries++ {
		loops, err := blockdev.Loops()
		if err != nil {
			return err
		}
		stands := ""
		for _, l := range loops {
			if l.SameFile(info) {
				stands = l.Path
			}
		}
		if stands == "" || ctx.Err() != nil {
			return ctx.Err()
		}
		if tries == loopTries {
			return fmt.Errorf("%s stands on %s: stop who uses it, and detach it with `losetup --detach %s`: %w",
				stands, file, stands, errdefs.ErrUnavailable)
		}
		time.Sleep(loopPause)
	}
}

// Owner says what a volume belongs to in the store.
func Owner(ctx context.Context, store *metadata.Store, volume uint32) (string, error) {
	name := fmt.Sprintf("volume %d, which belongs to nothing", volume)
	err := store.View(ctx, func(tx *metadata.Tx) error {
		owner, owned := tx.Owner(volume)
		if !owned {
			return nil
		}
		switch owner.Kind {
		case metadata.OwnerSnapshot:
			name = fmt.Sprintf("snapshot %q (volume %d)", owner.Key, volume)
		case metadata.OwnerBase:
			name = fmt.Sprintf("base volume %s (volume %d)", owner.Key, volume)
		case metadata.OwnerTrash:
			name = fmt.Sprintf("volume %d, which waits to be deleted", volume)
		}
		return nil
	})
	return name, err
}
