package images

import (
	"bytes"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Registry serves the images of one seed under NAME:NUMBER, made when they are
// asked for.
type Registry struct {
	Seed uint64
}

// ServeHTTP answers what a client asks that pulls an image (OCI distribution
// specification): manifests by tag and by digest, and blobs.
func (r Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	parts := strings.Split(strings.Trim(req.URL.Path, "/"), "/") // v2 NAME manifests|blobs REFERENCE
	if len(parts) != 4 {
		w.WriteHeader(http.StatusOK)
		return
	}
	// The name is the number, too: a digest alone does not tell which image it is of.
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
