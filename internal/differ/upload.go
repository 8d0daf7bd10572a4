package differ

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// upload writes a blob to containerd's content store. The first Write opens a writer there.
type upload struct {
	store          *containerd
	ref, mediaType string
	// isLast is set before the last write. A blob of one write is written under the shared lease,
	// because its own lease would cost containerd two transactions.
	isLast bool

	writer content.Writer
	stop   func() // ends the stream to containerd
	end    func() // ends the lease for writing; nil under the shared or the caller's lease
	// isOld is true if containerd already had the blob, and dropped the written content.
	isOld bool
}

// Write implements io.Writer.
func (u *upload) Write(b []byte) (int, error) {
	if u.writer == nil {
		if err := u.open(); err != nil {
			return 0, err
		}
	}
	return u.writer.Write(b)
}

func (u *upload) open() (err error) {
	var ctx context.Context
	if u.isLast {
		ctx, err = u.store.lease()
	} else {
		ctx, u.end, err = u.store.leaseLong()
	}
	if err != nil {
		return err
	}
	ctx, u.stop = context.WithCancel(ctx)
	w, err := u.store.content.Writer(ctx, content.WithRef(u.ref),
		content.WithDescriptor(ocispec.Descriptor{MediaType: u.mediaType}))
	if err != nil {
		return fmt.Errorf("open %s: %w", u.ref, err)
	}
	u.writer = w
	return w.Truncate(0) // a caller's reference may have content
}

// mayRemain reports whether written content may be left.
func (u *upload) mayRemain() bool { return u.writer != nil && !u.isOld }

// commit commits the blob, and has containerd keep it. containerd adds only new blobs to the lease
// of the writer (Write in plugins/services/content/contentserver). For others, commit calls keep.
func (u *upload) commit(blob, diffID digest.Digest, labels map[string]string) error {
	err := u.writer.Commit(u.store.ctx, 0, blob, content.WithLabels(labels))
	u.isOld = errdefs.IsAlreadyExists(err)
	if err != nil && !u.isOld {
		return err
	}
	if u.isOld || u.end != nil {
		if err := u.store.keep(blob); err != nil {
			return fmt.Errorf("lease the layer: %w", err)
		}
	}
	if u.isOld { // label fails if containerd collected the blob before the lease
		return u.store.label(blob, diffID)
	}
	return nil
}

// abort removes the written content. If that fails, containerd's collector removes it.
func (u *upload) abort() {
	if u.writer != nil {
		u.stop()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(u.store.ctx), releaseTime)
		defer cancel()
		_ = u.store.content.Abort(ctx, u.ref)
	}
}

// close releases all resources. Uncommitted content stays until containerd collects it.
func (u *upload) close() {
	if u.writer != nil {
		_ = u.writer.Close()
	}
	if u.stop != nil {
		u.stop()
	}
	if u.end != nil {
		u.end()
	}
}
