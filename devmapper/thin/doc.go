// Package thin formats and parses the tables, the status lines and the messages of the thin-pool
// and thin targets, as the kernel defines them
// (Documentation/admin-guide/device-mapper/thin-provisioning.rst and drivers/md/dm-thin.c). It has
// no policy: its callers suspend origins, choose ids and decide which volumes to keep.
package thin
