module github.com/thinsnap/thinsnap/integration/tools/gofail

go 1.26.6

tool go.etcd.io/gofail

require go.etcd.io/gofail v0.2.0 // indirect
