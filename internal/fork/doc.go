// Package fork makes forks through containerd: a snapshot with the content that another one has at this
// moment, and a copy of the container's record that runs on it.
package fork
