// Package clients lets one client at a time use the store, and keeps the snapshots of an earlier
// client from the collector of the present one.
//
// A containerd's collector removes each snapshot that its own database does not have. So a second
// containerd is refused while the first lives. Of a containerd that follows another, thinsnap needs
// to know that its database is not older than the snapshots that it removes. containerd's keys tell:
// "NAMESPACE/NUMBER/NAME", with numbers that rise in each name space. See [Registry].
package clients
