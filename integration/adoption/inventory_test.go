package adoption

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/internal/adopt/builtin"
)

// inventory lists everything in containerd that belongs to a snapshotter, and all images. It writes SN for the
// snapshotter's name, so that it is equal before and after an adoption.
func (n *node) inventory(t *testing.T, snapshotter string) (lines []string) {
	t.Helper()
	names := strings.NewReplacer(".snapshot."+snapshotter, ".snapshot.SN", "snapshots/"+snapshotter, "snapshots/SN",
		"snapshotter "+snapshotter, "snapshotter SN")
	add := func(format string, args ...any) {
		lines = append(lines, names.Replace(fmt.Sprintf(format, args...)))
	}
	for _, ns := range n.namespaces() {
		n.must(t, ns, snapshotter, func(c client) error {
			infos, err := c.infos()
			for _, s := range infos {
				delete(s.Labels, builtin.FilesystemLabel)
				add("%s snapshot %s of %q: %s, %v, %s", ns, s.Name, s.Parent, s.Kind, s.Labels, s.Created.UTC().Format(time.RFC3339Nano))
			}
			return errors.Join(err, c.contentLabels(func(digest string, labels map[string]string) {
				add("%s content %s: %v", ns, digest, labels)
			}), c.objects(ns, add))
		})
	}
	slices.Sort(lines)
	return lines
}

// contentLabels lists the labels of all content.
func (c client) contentLabels(f func(digest string, labels map[string]string)) error {
	stream, err := contentapi.NewContentClient(c.conn).List(c, &contentapi.ListContentRequest{})
	for err == nil {
		var part *contentapi.ListContentResponse
		if part, err = stream.Recv(); err == nil {
			for _, info := range part.Info {
				f(info.Digest, info.Labels)
			}
		}
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// objects lists images, containers, and the resources of leases.
func (c client) objects(ns string, add func(format string, args ...any)) error {
	images, imagesErr := imagesapi.NewImagesClient(c.conn).List(c, &imagesapi.ListImagesRequest{})
	for _, image := range images.GetImages() {
		add("%s image %s: %s, %v", ns, image.Name, image.Target.Digest, image.Labels)
	}
	containers, containersErr := containersapi.NewContainersClient(c.conn).List(c, &containersapi.ListContainersRequest{})
	for _, container := range containers.GetContainers() {
		add("%s container %s: %s, snapshotter %s", ns, container.ID, container.SnapshotKey, container.Snapshotter)
	}
	client := leasesapi.NewLeasesClient(c.conn)
	leases, leasesErr := client.List(c, &leasesapi.ListRequest{})
	for _, lease := range leases.GetLeases() {
		held, err := client.ListResources(c, &leasesapi.ListResourcesRequest{ID: lease.ID})
		leasesErr = errors.Join(leasesErr, err)
		for _, resource := range held.GetResources() {
			add("%s lease %s: %s %s", ns, lease.ID, resource.Type, resource.ID)
		}
	}
	return errors.Join(imagesErr, containersErr, leasesErr)
}

// removeAll removes all containers, images and leases of all namespaces, and then all snapshots that nothing else held.
func (n *node) removeAll(t *testing.T, snapshotter string) {
	t.Helper()
	for _, ns := range n.namespaces() {
		n.must(t, ns, snapshotter, func(c client) error {
			containers, err := containersapi.NewContainersClient(c.conn).List(c, &containersapi.ListContainersRequest{})
			for _, container := range containers.GetContainers() {
				_, deleteErr := containersapi.NewContainersClient(c.conn).Delete(c, &containersapi.DeleteContainerRequest{ID: container.ID})
				err = errors.Join(err, deleteErr)
			}
			images, listErr := imagesapi.NewImagesClient(c.conn).List(c, &imagesapi.ListImagesRequest{})
			err = errors.Join(err, listErr)
			for _, image := range images.GetImages() {
				_, deleteErr := imagesapi.NewImagesClient(c.conn).Delete(c, &imagesapi.DeleteImageRequest{Name: image.Name})
				err = errors.Join(err, deleteErr)
			}
			leases, listErr := leasesapi.NewLeasesClient(c.conn).List(c, &leasesapi.ListRequest{})
			err = errors.Join(err, listErr)
			for _, lease := range leases.GetLeases() {
				err = errors.Join(err, c.deleteLease(lease.ID))
			}
			return errors.Join(err, c.unroot(), c.collect())
		})
	}
	require.Empty(t, n.snapshots(t, snapshotter))
}

// unroot removes the labels that keep snapshots from garbage collection.
func (c client) unroot() error {
	infos, err := c.infos()
	for _, info := range infos {
		delete(info.Labels, rootLabel)
		if _, updateErr := c.Update(c, info, "labels."+rootLabel); !errdefs.IsNotFound(updateErr) { // it may be collected already
			err = errors.Join(err, updateErr)
		}
	}
	return err
}

func (c client) collect() error {
	const id = "collect"
	return errors.Join(c.createLease(id), c.deleteLease(id))
}

// snapshots lists the snapshots of all namespaces, as NAMESPACE/NAME.
func (n *node) snapshots(t *testing.T, snapshotter string) (names []string) {
	t.Helper()
	for _, ns := range n.namespaces() {
		n.must(t, ns, snapshotter, func(c client) error {
			infos, err := c.infos()
			for _, info := range infos {
				names = append(names, ns+"/"+info.Name)
			}
			return err
		})
	}
	return names
}
