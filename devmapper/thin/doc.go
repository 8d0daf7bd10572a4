// Package thin gives types to the strings of the thin-pool and thin targets:
// their tables, their status lines and the messages of a pool, as the kernel's
// Documentation/admin-guide/device-mapper/thin-provisioning.rst and its
// drivers/md/dm-thin.c define them. It has no policy: its callers suspend
// origins, choose ids and decide which volumes to keep.
package thin
