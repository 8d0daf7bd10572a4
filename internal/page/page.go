// Package page serves the web page with the fill of the pool over time, the tree of its snapshots
// and the daemon's calls. The page's files are embedded. It loads nothing from other sites, and
// gets its data from the paths of Data, below its own path.
package page

import (
	"embed"
	"io/fs"
	"net/http"
	"path"
)

//go:embed static
var files embed.FS

// Data returns the paths of the page's data on the admin socket.
func Data() []string {
	return []string{"/v1/info", "/v1/activity", "/v1/history", "/v1/snapshots", "/v1/owners"}
}

// Handler serves the page at / and its files in the same directory.
func Handler() http.Handler {
	static, err := fs.Sub(files, "static")
	if err != nil {
		panic(err) // the directory is embedded above
	}
	server := http.FileServerFS(static)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		Protect(w.Header())
		if name := path.Clean(r.URL.Path); name != "/" && path.Dir(name) != "/" {
			http.NotFound(w, r)
			return
		}
		server.ServeHTTP(w, r)
	})
}

// Protect sets headers that forbid a browser to load or run anything except the page's own files,
// and other sites to show the page in a frame.
func Protect(h http.Header) {
	h.Set("Content-Security-Policy", "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
}
