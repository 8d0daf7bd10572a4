// Package plan says what becomes of each snapshot of containerd's built-in devmapper snapshotter when
// thinsnap adopts it. It compares containerd's own database, the built-in's two, the pool in the
// kernel, the pool's committed metadata, and the superblocks of the volumes. It changes nothing, and
// activates nothing.
package plan
