// Package clients admits one client of a key space at a time, and keeps snapshots of earlier
// clients from its collector.
//
// containerd's collector removes each snapshot that its own database lacks. So a second containerd
// is refused while the first lives. The next containerd may remove an earlier one's snapshots only
// if its database is not older than these. containerd's keys show that: they are
// "NAMESPACE/NUMBER/NAME", and the numbers of a namespace rise.
//
// An installation is a containerd or a BuildKit with its data; the UUID or worker id that it keeps
// there identifies it. See [Registry], and "Clients" in docs/design.md.
package clients
