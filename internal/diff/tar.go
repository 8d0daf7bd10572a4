package diff

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/continuity/fs"
)

// WriteTar writes changes as an uncompressed OCI layer, as the walking differ does. It reads the
// files of upper.
func WriteTar(
	ctx context.Context, w io.Writer, upper Volume, changes []Change, opts ...archive.ChangeWriterOpt,
) error {
	tar := archive.NewChangeWriter(untilDone{ctx, w}, upper.Root, opts...)
	for _, change := range changes {
		var info os.FileInfo
		var err error
		if change.Kind != fs.ChangeKindDelete {
			info, err = os.Lstat(upper.Root + change.Path)
		}
		if err := tar.HandleChange(change.Kind, change.Path, info, err); err != nil {
			return fmt.Errorf("write %s to the layer: %w", change.Path, err)
		}
	}
	return tar.Close()
}

// untilDone is a writer that fails when the context is done: a ChangeWriter copies a file of any
// size in one call.
type untilDone struct {
	ctx context.Context
	w   io.Writer
}

func (u untilDone) Write(b []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.w.Write(b)
}
