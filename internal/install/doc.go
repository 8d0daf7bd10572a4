// Package install installs thinsnap on the machine of a privileged container, and removes it again:
// the program, the systemd units and the configuration. It changes and removes only files that it
// wrote itself, and keeps the pool with its data.
package install
