// Package boltfile makes it safe to read a bbolt file that may be damaged.
//
// bbolt trusts its pages. A damaged page makes it panic (even in a goroutine that it started), read
// beyond the end of the file, recurse endlessly, or report four billion pages one by one. Check
// examines the pages before bbolt does, and Guard turns the remaining panics into errors. View and
// Update do both, for one transaction on a file of another program.
package boltfile
