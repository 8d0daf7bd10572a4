// Package owners finds the image, container or pod of a snapshot. It asks containerd, because thinsnap's store has only
// keys.
package owners

import (
	"cmp"
	"slices"
	"strings"

	"github.com/thinsnap/thinsnap/internal/clients"
)

// Owner is the image or container of a snapshot.
type Owner struct {
	// Namespace is containerd's namespace.
	Namespace string
	// Images are the names of the images that have the snapshot as a layer, sorted. Digests count as names only for an
	// image without another name.
	Images []string
	// Container is nil unless the snapshot is a container's root file system.
	Container *Container
}

// Container describes a container. Names that its client has not set are empty.
type Container struct {
	ID           string
	Name         string // in nerdctl or Kubernetes
	Image        string
	Pod          string // name of its pod
	PodNamespace string // Kubernetes' namespace of the pod
	Sandbox      bool   // it is the pod's sandbox
}

// Snapshot is a stored snapshot.
type Snapshot struct{ Key, Parent string }

// image is an image of containerd. tops are the snapshots of its last layers, one for each unpacked platform.
type image struct {
	name, target string
	tops         []string
}

// namespace has the contents of one of containerd's namespaces. Containers are keyed by the names of their snapshots.
type namespace struct {
	images     []image
	containers map[string]Container
}

// assign returns the owners of snapshots, by key. The map lacks snapshots without an owner.
func assign(spaces map[string]namespace, all []Snapshot) map[string]Owner {
	owners := make(map[string]Owner)
	parents := make(map[string]string, len(all))
	for _, s := range all {
		parents[s.Key] = s.Parent
	}
	for name, keys := range currentKeys(all) {
		space := spaces[name]
		for snapshot, key := range keys {
			if container, ok := space.containerOf(snapshot); ok {
				owners[key] = Owner{Namespace: name, Container: &container}
			}
		}
		for _, i := range withoutDigests(space.images) {
			layers := make(map[string]bool)
			for _, top := range i.tops {
				for key := keys[top]; key != "" && !layers[key]; key = parents[key] {
					layers[key] = true
				}
			}
			for key := range layers {
				owner := owners[key]
				owner.Namespace, owner.Images = name, append(owner.Images, i.name)
				owners[key] = owner
			}
		}
	}
	for _, owner := range owners {
		slices.Sort(owner.Images)
	}
	return owners
}

// currentKeys returns the keys of snapshots, by namespace and name. Of several with one name it returns that with the
// highest number: the others wait for containerd's garbage collector.
func currentKeys(all []Snapshot) map[string]map[string]string {
	type numbered struct {
		key    string
		number uint64
	}
	latest := make(map[string]map[string]numbered)
	for _, s := range all {
		space, number, name, ok := clients.SplitKey(s.Key)
		if !ok {
			continue
		}
		if latest[space] == nil {
			latest[space] = make(map[string]numbered)
		}
		if had, ok := latest[space][name]; !ok || had.number < number {
			latest[space][name] = numbered{s.Key, number}
		}
	}
	keys := make(map[string]map[string]string, len(latest))
	for space, names := range latest {
		keys[space] = make(map[string]string, len(names))
		for name, n := range names {
			keys[space][name] = n.key
		}
	}
	return keys
}

// initSuffix ends the key of the snapshot that Docker fills before the container's.
const initSuffix = "-init"

func (n namespace) containerOf(snapshot string) (Container, bool) {
	c, ok := n.containers[snapshot]
	if !ok {
		c, ok = n.containers[strings.TrimSuffix(snapshot, initSuffix)]
	}
	return c, ok
}

// withoutDigests leaves out images named by digest that have another name.
func withoutDigests(images []image) []image {
	hasName := make(map[string]bool)
	for _, i := range images {
		if !isDigest(i.name) {
			hasName[i.target] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(images), func(i image) bool { return isDigest(i.name) && hasName[i.target] })
}

// isDigest reports whether an image's name is a digest: the CRI also stores an image by the digests of its manifest and
// its configuration.
func isDigest(name string) bool {
	return strings.HasPrefix(name, "sha256:") || strings.Contains(name, "@sha256:")
}

// Labels of containers.
const (
	labelNerdctl      = "nerdctl/name"
	labelContainer    = "io.kubernetes.container.name"
	labelPod          = "io.kubernetes.pod.name"
	labelPodNamespace = "io.kubernetes.pod.namespace"
	labelKind         = "io.cri-containerd.kind"
)

// newContainer returns a container with the names from its labels.
func newContainer(id, image string, labels map[string]string) Container {
	return Container{
		ID: id, Image: image, Name: cmp.Or(labels[labelNerdctl], labels[labelContainer]),
		Pod: labels[labelPod], PodNamespace: labels[labelPodNamespace], Sandbox: labels[labelKind] == "sandbox",
	}
}
