// Package rpc serves a snapshotter to containerd over gRPC. It logs and measures every call, limits
// the running calls, and turns a panic in a call into an error.
package rpc
