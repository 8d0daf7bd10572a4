// Package page is what people look at: one page with how full a pool was and is, the tree of its snapshots, and what the
// daemon is doing. It is made of files in the program, needs nothing from elsewhere, and asks for its figures with the
// paths below, relative to its own: so it works wherever those answer.
package page

import (
	"embed"
	"io/fs"
	"net/http"
	"path"
)

//go:embed static
var files embed.FS

// Data are the paths that the page gets its figures from. They are the admin socket's.
func Data() []string {
	return []string{"/v1/info", "/v1/activity", "/v1/history", "/v1/snapshots"}
}

// Handler serves the page at / and its parts beside it.
func Handler() http.Handler {
	static, err := fs.Sub(files, "static")
	if err != nil {
		panic(err) // the name is the one above
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

// Protect sets the headers that keep a browser from running, or asking for, anything that is not the page's own, and other
// pages from having this one in a frame.
func Protect(h http.Header) {
	h.Set("Content-Security-Policy", "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
}
