package admin

// Owners is the answer of GET /v1/owners. A snapshot that is not in it belongs to nothing that containerd lists: an
// image is being unpacked, or containerd's garbage collector will remove the snapshot.
type Owners struct {
	Owners  []Owner `json:"owners"`            // sorted by key
	Unknown string  `json:"unknown,omitempty"` // why the owners of some or all snapshots are unknown
}

// Owner is an image, a container or a pod with a snapshot.
type Owner struct {
	Key       string     `json:"key"`                 // the snapshot's key
	Namespace string     `json:"namespace"`           // containerd's namespace
	Images    []string   `json:"images,omitempty"`    // the images that have the snapshot as a layer, sorted by name
	Container *Container `json:"container,omitempty"` // the container whose root file system the snapshot is
}

// Container describes a container. Its client may give it no name.
type Container struct {
	ID           string `json:"id"`
	Name         string `json:"name,omitempty"` // its name in nerdctl, Docker Compose or Kubernetes
	Image        string `json:"image,omitempty"`
	Pod          string `json:"pod,omitempty"`           // the name of its pod
	PodNamespace string `json:"pod_namespace,omitempty"` // the pod's namespace in Kubernetes
	Sandbox      bool   `json:"sandbox,omitempty"`       // it is the pod's sandbox
}
