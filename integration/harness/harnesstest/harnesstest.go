package harnesstest

import (
	"encoding/pem"
	"net"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/thinsnap/thinsnap/integration/harness"
)

// Images are the full names of the tests' images.
type Images struct {
	// Debian is a complete system with files of every kind, in five layers.
	Debian string
	// Layers16 is a complete system in 16 layers of the same size.
	Layers16 string
	// Busybox is small, in two layers.
	Busybox string
}

// StartRegistry serves the images on loopback.
func StartRegistry(t testing.TB, tools harness.Tools) Images {
	t.Helper()
	_, images := StartRegistryProcess(t, tools)
	return images
}

// StartRegistryProcess is StartRegistry for a test that stops the registry.
func StartRegistryProcess(t testing.TB, tools harness.Tools) (*harness.Process, Images) {
	t.Helper()
	p, address, err := harness.StartRegistry(tools, t.TempDir())
	end(t, p)
	require.NoError(t, err)
	return p, Images{
		Debian:   address + "/debian:thinsnap",
		Layers16: address + "/layers16:thinsnap",
		Busybox:  address + "/busybox:thinsnap",
	}
}

// ServeTLS serves an image at another address, with TLS, which the transfer service of containerd 1.7 needs. It returns
// the image's name there, and the variable that makes a program trust the certificate.
func ServeTLS(t testing.TB, image string) (name, variable string) {
	t.Helper()
	address, name, _ := strings.Cut(image, "/")
	server := httptest.NewTLSServer(httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: address}))
	t.Cleanup(server.Close)
	file := filepath.Join(t.TempDir(), "certificate")
	content := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	require.NoError(t, os.WriteFile(file, content, 0o600))
	return strings.TrimPrefix(server.URL, "https://") + "/" + name, "SSL_CERT_FILE=" + file
}

// end kills the program when the test ends, if it was started, and shows its log if the test has failed.
func end(t testing.TB, p *harness.Process) {
	t.Helper()
	t.Cleanup(func() {
		if p == nil {
			return
		}
		p.Kill()
		if t.Failed() {
			t.Log(p.Log())
		}
	})
}

// must runs a command, fails the test on an error, and logs the command's time.
func must(t testing.TB, program string, run func(args ...string) (string, error), args ...string) string {
	t.Helper()
	start := time.Now()
	out, err := run(args...)
	require.NoError(t, err)
	t.Logf("%5.1f s  %s %s", time.Since(start).Seconds(), program, strings.Join(args, " "))
	return out
}

// ShortDir returns a temporary directory whose path is short enough for sockets, whose paths may have 107 bytes
// (unix(7)).
func ShortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ts")
	require.NoError(t, err)
	// Other users' containers have their root file systems below it.
	require.NoError(t, os.Chmod(dir, 0o711))
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

// FreeAddress returns an unused TCP address on loopback.
func FreeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	return l.Addr().String()
}
