// Package check compares the store, the kernel and the pool of one root, and reports every
// difference as a Finding. It changes nothing: package daemon makes the repairs.
//
// Two other packages check one part each. metadata.Store.Check compares the records and indexes
// within the store; its Problems become findings here. Package devmapper/pool/repair runs
// thin_check on the metadata of a pool that is not loaded in the kernel.
package check
