package differ

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"

	"github.com/containerd/containerd/v2/core/content"
	coreDiff "github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/thinsnap/thinsnap/internal/diff"
)

// writeBytes is what is sent to containerd at a time. Each message has an answer, and a compressor writes
// a few hundred bytes at a time.
const writeBytes = 1 << 20

// errMismatch is returned with Options.Verify for a layer that is not that of the walking differ.
var errMismatch = errors.New("the layer is not that of the walking differ: this is a bug, please report it")

// write writes the layer to the content store.
func (d *Differ) write(
	ctx context.Context, store *containerd, s sides, compress compression.Compression, config coreDiff.Config,
	p *progress,
) (ocispec.Descriptor, error) {
	ref := config.Reference
	if ref == "" {
		ref = "thinsnap-" + rand.Text()
	}
	descriptor := ocispec.Descriptor{MediaType: config.MediaType}
	streaming, stop := context.WithCancel(ctx)
	defer stop()
	w, err := store.content.Writer(streaming, content.WithRef(ref), content.WithDescriptor(descriptor))
	if err != nil {
		return descriptor, unwrittenError{fmt.Errorf("open %s in the content store: %w", ref, err)}
	}
	defer w.Close()
	uncompressed, err := stream(ctx, w, s, compress, config, p)
	if err == nil {
		config.Labels = maps.Clone(config.Labels)
		if config.Labels == nil {
			config.Labels = make(map[string]string)
		}
		config.Labels[labels.LabelUncompressed] = uncompressed.diffID.String()
		descriptor.Digest = uncompressed.digest
		err = w.Commit(ctx, 0, descriptor.Digest, content.WithLabels(config.Labels))
	}
	if err != nil && !errdefs.IsAlreadyExists(err) {
		stop()
		_ = store.content.Abort(context.WithoutCancel(ctx), ref) // containerd's collector does it otherwise
		return descriptor, fmt.Errorf("write the layer to the content store: %w", err)
	}
	info, err := store.content.Info(ctx, descriptor.Digest)
	if err == nil && info.Labels[labels.LabelUncompressed] == "" {
		if info.Labels == nil {
			info.Labels = make(map[string]string)
		}
		info.Labels[labels.LabelUncompressed] = uncompressed.diffID.String()
		_, err = store.content.Update(ctx, info, "labels."+labels.LabelUncompressed)
	}
	if err == nil {
		err = store.keep(ctx, descriptor.Digest)
	}
	descriptor.Size = info.Size
	if err != nil {
		return descriptor, fmt.Errorf("label the layer in the content store: %w", err)
	}
	return descriptor, nil
}

// written are the digests of a layer, before and after compression.
type written struct{ diffID, digest digest.Digest }

// stream writes the layer to a new or a truncated content writer.
func stream(
	ctx context.Context, w content.Writer, s sides, compress compression.Compression, config coreDiff.Config,
	p *progress,
) (written, error) {
	if err := w.Truncate(0); err != nil {
		return written{}, err
	}
	tar, blob := sha256.New(), sha256.New()
	buffer := bufio.NewWriterSize(io.MultiWriter(w, blob), writeBytes)
	compressed, err := compression.CompressStream(buffer, compress)
	if err != nil {
		return written{}, err
	}
	err = diff.WriteTar(ctx, p.of(io.MultiWriter(compressed, tar)), s.upper, s.listing.Changes, writerOptions(&config)...)
	if err = errors.Join(err, compressed.Close()); err == nil {
		err = buffer.Flush()
	}
	return written{sum(tar), sum(blob)}, err
}

func sum(h hash.Hash) digest.Digest { return digest.NewDigest(digest.SHA256, h) }

func writerOptions(config *coreDiff.Config) []archive.ChangeWriterOpt {
	if config.SourceDateEpoch == nil {
		return nil
	}
	return []archive.ChangeWriterOpt{archive.WithModTimeUpperBound(*config.SourceDateEpoch)}
}

// verify fails unless the walking differ makes the same layer.
func (d *Differ) verify(ctx context.Context, s sides, config *coreDiff.Config) error {
	ours, theirs := sha256.New(), sha256.New()
	if err := diff.WriteTar(ctx, ours, s.upper, s.listing.Changes, writerOptions(config)...); err != nil {
		return err
	}
	// As archive.WriteDiff does. Its walk does not follow a root below /proc, which is a symbolic link.
	tar := archive.NewChangeWriter(theirs, s.upper.Root, writerOptions(config)...)
	err := fs.Changes(ctx, s.lower.Root+"/.", s.upper.Root+"/.", tar.HandleChange)
	if err = errors.Join(err, tar.Close()); err != nil {
		return err
	}
	if sum(ours) != sum(theirs) {
		d.stats.mismatched.Add(1)
		return errMismatch
	}
	return nil
}
