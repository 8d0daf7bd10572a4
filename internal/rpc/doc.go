// Package rpc serves a snapshotter and a differ to containerd over gRPC. It logs and measures every
// call, limits the running calls of the snapshotter, and turns a panic in a call into an error.
package rpc
