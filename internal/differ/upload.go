package differ

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// upload writes a blob to containerd's content store, which it opens at the first write.
type upload struct {
	store          *containerd
	ref, mediaType string
	// isWhole says that the first write has the whole blob. Each lease, and each end of one, is a transaction in
	// containerd: what is written at once shares the lease of all.
	isWhole bool

	writer content.Writer
	keep   func(digest.Digest) error // called after commit, unless it is nil
	stop   func()                    // ends the stream to containerd
	end    func()                    // ends the lease
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
	if u.isWhole {
		ctx, err = u.store.lease()
	} else {
		ctx, u.keep, u.end, err = u.store.leaseLong()
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
	return w.Truncate(0) // a client may have named a reference that has content
}

// written returns whether something may have been written.
func (u *upload) written() bool { return u.writer != nil }

// commit ends the blob. It is errdefs.ErrAlreadyExists if the store has it: containerd keeps that all the same.
func (u *upload) commit(blob digest.Digest, labels map[string]string) error {
	return u.writer.Commit(u.store.ctx, 0, blob, content.WithLabels(labels))
}

// abort removes what was written; containerd's collector does it otherwise.
func (u *upload) abort() {
	if u.writer != nil {
		u.stop()
		_ = u.store.content.Abort(context.WithoutCancel(u.store.ctx), u.ref)
	}
}

// close gives everything back. What was not committed stays until containerd collects it.
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
