// Package plan decides the outcome of each snapshot of containerd's built-in devmapper snapshotter
// when thinsnap adopts it. It compares containerd's own database, the built-in's two databases, the
// pool in the kernel, the pool's committed metadata, and the superblocks of the volumes. It changes
// nothing, and activates nothing.
package plan
