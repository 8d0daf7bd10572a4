package images

import (
	"bytes"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Registry serves the images of one seed as NUMBER:latest. It generates them per request: a real registry would need
// all of them on a disk, for each seed.
type Registry struct {
	Seed uint64
}

// ServeHTTP answers the requests of a pull (OCI distribution specification): manifests by tag and
// by digest, and blobs.
func (r Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	parts := strings.Split(strings.Trim(req.URL.Path, "/"), "/") // v2 NUMBER manifests|blobs REFERENCE
	if len(parts) != 4 {
		w.WriteHeader(http.StatusOK)
		return
	}
	// The name is the image's number, because a request by digest has no other number.
	number, err := strconv.ParseUint(parts[1], 10, 64)
	if err != nil {
		http.NotFound(w, req)
		return
	}
	image, err := New(r.Seed, number)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	body, found := image.manifest, true
	w.Header().Set("Content-Type", manifestType)
	if parts[2] == "blobs" {
		body, found = image.blobs[parts[3]]
		w.Header().Set("Content-Type", "application/octet-stream")
	}
	if !found {
		http.NotFound(w, req)
		return
	}
	w.Header().Set("Docker-Content-Digest", digest(body))
	http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(body))
}
