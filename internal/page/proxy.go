package page

import (
	"crypto/subtle"
	"encoding/json"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"

	"github.com/thinsnap/thinsnap/internal/httpserver"
)

// Proxy serves the page below /TOKEN/ to a browser on the same machine, with data from the daemon
// behind transport. It refuses requests without the token, and requests for another host name,
// which DNS rebinding sends. It forwards only reads of the page's data.
func Proxy(transport http.RoundTripper, token string) http.Handler {
	p := &proxy{token: token, page: Handler(), daemon: &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: "thinsnap"})
			r.Out.URL.RawQuery = ""
			if strings.HasSuffix(r.In.URL.Path, "/v1/snapshots") {
				r.Out.URL.RawQuery = "labels=no"
			}
		},
		Transport:    transport,
		ErrorHandler: unavailable,
	}}
	return p
}

type proxy struct {
	token        string
	page, daemon http.Handler
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	Protect(w.Header())
	first, rest, whole := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	switch {
	case !httpserver.IsLoopbackHost(r.Host):
		http.Error(w, "for browsers on this machine only", http.StatusMisdirectedRequest)
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		http.Error(w, "read-only", http.StatusMethodNotAllowed)
	case subtle.ConstantTimeCompare([]byte(first), []byte(p.token)) != 1:
		http.NotFound(w, r)
	case !whole:
		http.Redirect(w, r, "/"+p.token+"/", http.StatusMovedPermanently)
	default:
		r = r.Clone(r.Context())
		r.URL.Path, r.URL.RawPath = "/"+rest, ""
		if slices.Contains(Data(), r.URL.Path) {
			p.daemon.ServeHTTP(w, r)
			return
		}
		p.page.ServeHTTP(w, r)
	}
}

// unavailable reports that the daemon does not answer, in the form of the daemon's errors.
func unavailable(w http.ResponseWriter, _ *http.Request, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusBadGateway)
	// The client may have closed the connection.
	_ = json.NewEncoder(w).Encode(map[string]string{"message": err.Error()})
}
