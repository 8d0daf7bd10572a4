// Package install puts thinsnap on the machine that a privileged container runs on, and takes it away again:
// the program, the units of systemd and the configuration. It changes and removes only files that it
// wrote itself, and keeps the pool with its data.
package install
