// Package daemon opens the store, the pool and the snapshotter of one root directory, and
// implements the admin socket's Backend and the commands on the root of a stopped daemon.
package daemon
