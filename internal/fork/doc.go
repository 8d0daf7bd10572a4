// Package fork makes forks through containerd: a snapshot with the present content of another, and
// a copy of the record of the container that uses it.
package fork
