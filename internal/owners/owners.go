// Package owners tells which image, container or pod a snapshot belongs to. It asks containerd: thinsnap's
// own store has only containerd's keys.
package owners

import (
	"cmp"
	"slices"
	"strings"

	"github.com/thinsnap/thinsnap/internal/clients"
)

// Owner is what a snapshot belongs to.
type Owner struct {
	// Namespace is containerd's name space of the snapshot.
	Namespace string
	// Images are the names of the images that have the snapshot as a layer, sorted. An image's digests are
	// names only if it has no other.
	Images []string
	// Container is nil for a snapshot that is not a container's root file system.
	Container *Container
}

// Container describes a container. Names are empty where its client gave none.
type Container struct {
	ID           string
	Name         string // as nerdctl, Docker Compose or Kubernetes calls it
	Image        string
	Pod          string // the name of its pod
	PodNamespace string // Kubernetes' name space of the pod
	Sandbox      bool   // it is the pod's sandbox
}

// Snapshot is a snapshot as the store has it.
type Snapshot struct{ Key, Parent string }

// image is one of containerd's images. Its layers end with the snapshots of these names, one for each platform
// that was unpacked.
type image struct {
	name, target string
	tops         []string
}

// namespace is what containerd has in one of its name spaces. The containers are by the names of their snapshots.
type namespace struct {
	images     []image
	containers map[string]Container
}

// assign returns the owners of the snapshots, by key. A snapshot without an owner is not in it.
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
		for _, i := range named(space.images) {
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

// currentKeys returns the snapshots' keys by name space and name. containerd gives a later snapshot of the same
// name a higher number; an earlier one waits for containerd's garbage collector.
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

// initSuffix is what Docker adds to the key of a snapshot that it fills before the container's.
const initSuffix = "-init"

func (n namespace) containerOf(snapshot string) (Container, bool) {
	c, ok := n.containers[snapshot]
	if !ok {
		c, ok = n.containers[strings.TrimSuffix(snapshot, initSuffix)]
	}
	return c, ok
}

// named leaves out names that are digests, of images that have another name.
func named(images []image) []image {
	hasName := make(map[string]bool)
	for _, i := range images {
		if !isDigest(i.name) {
			hasName[i.target] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(images), func(i image) bool { return isDigest(i.name) && hasName[i.target] })
}

// isDigest reports whether an image's name is a digest: CRI stores an image also by the digests of its manifest
// and of its configuration.
func isDigest(name string) bool {
	return strings.HasPrefix(name, "sha256:") || strings.Contains(name, "@sha256:")
}

// The labels of containers.
const (
	labelNerdctl      = "nerdctl/name"
	labelContainer    = "io.kubernetes.container.name"
	labelPod          = "io.kubernetes.pod.name"
	labelPodNamespace = "io.kubernetes.pod.namespace"
	labelKind         = "io.cri-containerd.kind"
)

// newContainer returns a container with the names in its labels.
func newContainer(id, image string, labels map[string]string) Container {
	return Container{
		ID: id, Image: image, Name: cmp.Or(labels[labelNerdctl], labels[labelContainer]),
		Pod: labels[labelPod], PodNamespace: labels[labelPodNamespace], Sandbox: labels[labelKind] == "sandbox",
	}
}
