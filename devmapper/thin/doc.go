// Package thin gives types to the strings of the thin-pool and thin targets:
// their tables, their status lines and the messages of a pool, as the kernel's
// Documentation/admin-guide/device-mapper/thin-provisioning.rst and its
// drivers/md/dm-thin.c have them. It decides nothing: when an origin is
// suspended, which id is next and what is kept is for the packages above.
package thin
