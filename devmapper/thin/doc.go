// Package thin formats and parses the tables and the status lines of the thin-pool and thin
// targets, and sends messages to pools, as the kernel defines them
// (Documentation/admin-guide/device-mapper/thin-provisioning.rst and drivers/md/dm-thin.c). It has
// no policy: its callers suspend origins, choose ids and decide which volumes to keep.
package thin
