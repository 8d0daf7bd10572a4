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

	coreDiff "github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/continuity/fs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/thinsnap/thinsnap/internal/diff"
)

// writeBytes is the size of a write to containerd. Each message is acknowledged, and a compressor
// writes only a few hundred bytes at a time.
const writeBytes = 1 << 20

// errMismatch is returned with Options.Verify if a layer differs from that of the walking differ.
var errMismatch = errors.New("the layer differs from that of the walking differ: this is a bug, please report it")

func (d *Differ) write(
	ctx context.Context, store *containerd, s sides, compress compression.Compression, config coreDiff.Config,
	p *progress,
) (ocispec.Descriptor, error) {
	ref := config.Reference
	if ref == "" {
		ref = "thinsnap-" + rand.Text()
	}
	w := &upload{store: store, ref: ref, mediaType: config.MediaType}
	defer w.close()
	descriptor := ocispec.Descriptor{MediaType: config.MediaType}
	layer, err := stream(ctx, w, s, compress, config, p)
	if err == nil {
		descriptor.Digest, descriptor.Size = layer.digest, layer.size
		labelled := maps.Clone(config.Labels)
		if labelled == nil {
			labelled = make(map[string]string)
		}
		labelled[labels.LabelUncompressed] = layer.diffID.String()
		err = w.commit(descriptor.Digest, layer.diffID, labelled)
	}
	if err != nil {
		w.abort()
		err = fmt.Errorf("write the layer to the content store: %w", err)
	}
	if err != nil && !w.mayRemain() {
		err = unwrittenError{err}
	}
	return descriptor, err
}

// layerInfo has a layer's digests before and after compression, and its compressed size in bytes.
type layerInfo struct {
	diffID, digest digest.Digest
	size           int64
}

func stream(
	ctx context.Context, w *upload, s sides, compress compression.Compression, config coreDiff.Config, p *progress,
) (layerInfo, error) {
	tar, blob := sha256.New(), sha256.New()
	var size counter
	buffer := bufio.NewWriterSize(w, writeBytes)
	compressed, err := compression.CompressStream(io.MultiWriter(buffer, blob, &size), compress)
	if err != nil {
		return layerInfo{}, err
	}
	err = diff.WriteTar(ctx, p.of(io.MultiWriter(compressed, tar)), s.upper, s.listing.Changes, writerOptions(&config)...)
	if err = errors.Join(err, compressed.Close()); err == nil {
		w.isLast = true
		err = buffer.Flush()
	}
	return layerInfo{sum(tar), sum(blob), int64(size)}, err
}

// counter counts the bytes that are written to it.
type counter int64

func (c *counter) Write(b []byte) (int, error) {
	*c += counter(len(b))
	return len(b), nil
}

func sum(h hash.Hash) digest.Digest { return digest.NewDigest(digest.SHA256, h) }

func writerOptions(config *coreDiff.Config) []archive.ChangeWriterOpt {
	if config.SourceDateEpoch == nil {
		return nil
	}
	return []archive.ChangeWriterOpt{archive.WithModTimeUpperBound(*config.SourceDateEpoch)}
}

// verify fails unless the walking differ produces the same layer.
func (d *Differ) verify(ctx context.Context, s sides, config *coreDiff.Config) error {
	ours, theirs := sha256.New(), sha256.New()
	if err := diff.WriteTar(ctx, ours, s.upper, s.listing.Changes, writerOptions(config)...); err != nil {
		return err
	}
	// As archive.WriteDiff does, but with "/." after the roots: they may be symbolic links below
	// /proc, which the walk would not follow.
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
