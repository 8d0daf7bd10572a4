// Package install installs thinsnap on the machine of a privileged container, and removes it again:
// the program, the systemd units and the configuration. It changes and removes only files that it
// wrote itself, except for containerd's configuration, which `thinsnap setup` changes. Removal keeps
// the pool and its data.
package install
