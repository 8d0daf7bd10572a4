package owners

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"google.golang.org/grpc"
)

// Labels of the references that containerd's garbage collector follows (docs/garbage-collection.md of containerd).
// labelContent is also a prefix of labelLayer.
const (
	labelContent  = "containerd.io/gc.ref.content"
	labelLayer    = "containerd.io/gc.ref.content.l."
	labelSnapshot = "containerd.io/gc.ref.snapshot."
)

// Of asks containerd for its images and containers, and returns the owners of snapshots, by key. The map lacks a
// snapshot whose image is being unpacked, or that waits for containerd's garbage collector. snapshotter is the name of
// the proxy plugin in containerd's configuration.
func Of(
	ctx context.Context, conn grpc.ClientConnInterface, snapshotter string, all []Snapshot,
) (map[string]Owner, error) {
	answer, err := namespacesapi.NewNamespacesClient(conn).List(ctx, &namespacesapi.ListNamespacesRequest{})
	if err != nil {
		return nil, fmt.Errorf("ask containerd for its namespaces: %w", err)
	}
	spaces := make(map[string]namespace)
	for _, n := range answer.GetNamespaces() {
		ctx := namespaces.WithNamespace(ctx, n.GetName())
		images, err := askImages(ctx, conn, snapshotter)
		if err != nil {
			return nil, fmt.Errorf("ask containerd for the images in namespace %s: %w", n.GetName(), err)
		}
		containers, err := askContainers(ctx, conn, snapshotter)
		if err != nil {
			return nil, fmt.Errorf("ask containerd for the containers in namespace %s: %w", n.GetName(), err)
		}
		spaces[n.GetName()] = namespace{images, containers}
	}
	return assign(spaces, all), nil
}

func askContainers(
	ctx context.Context, conn grpc.ClientConnInterface, snapshotter string,
) (map[string]Container, error) {
	answer, err := containersapi.NewContainersClient(conn).List(ctx, &containersapi.ListContainersRequest{})
	if err != nil {
		return nil, err
	}
	containers := make(map[string]Container)
	for _, c := range answer.GetContainers() {
		key := c.GetSnapshotKey()
		switch {
		case key == "":
			key = c.GetID() // Docker's containers have no snapshot key
		case c.GetSnapshotter() != snapshotter:
			continue
		}
		containers[key] = newContainer(c.GetID(), c.GetImage(), c.GetLabels())
	}
	return containers, nil
}

func askImages(ctx context.Context, conn grpc.ClientConnInterface, snapshotter string) ([]image, error) {
	answer, err := imagesapi.NewImagesClient(conn).List(ctx, &imagesapi.ListImagesRequest{})
	if err != nil || len(answer.GetImages()) == 0 {
		return nil, err
	}
	content, err := askContent(ctx, conn, labelSnapshot+snapshotter)
	if err != nil {
		return nil, err
	}
	var images []image
	for _, i := range answer.GetImages() {
		target := i.GetTarget().GetDigest()
		images = append(images, image{i.GetName(), target, content.tops(target)})
	}
	return images, nil
}

// blob is a part of an image in the content store, with its children except layers, and the snapshot that was unpacked
// from it.
type blob struct {
	children []string
	top      string
}

// blobs are the blobs of the content store, by digest.
type blobs map[string]blob

// askContent returns the indexes, manifests and configurations of all images.
func askContent(ctx context.Context, conn grpc.ClientConnInterface, labelTop string) (blobs, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := contentapi.NewContentClient(conn).List(ctx, &contentapi.ListContentRequest{})
	if err != nil {
		return nil, err
	}
	all := make(blobs)
	for {
		answer, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		for _, info := range answer.GetInfo() {
			b := blob{top: info.GetLabels()[labelTop]}
			for label, digest := range info.GetLabels() {
				if strings.HasPrefix(label, labelContent) && !strings.HasPrefix(label, labelLayer) {
					b.children = append(b.children, digest)
				}
			}
			if b.top != "" || len(b.children) > 0 {
				all[info.GetDigest()] = b
			}
		}
	}
}

// tops returns the names of the snapshots that were unpacked from a blob or its descendants.
func (b blobs) tops(digest string) (names []string) {
	seen := map[string]bool{digest: true}
	for next := []string{digest}; len(next) > 0; next = next[1:] {
		here := b[next[0]]
		if here.top != "" {
			names = append(names, here.top)
		}
		for _, child := range here.children {
			if !seen[child] {
				seen[child] = true
				next = append(next, child)
			}
		}
	}
	return names
}
