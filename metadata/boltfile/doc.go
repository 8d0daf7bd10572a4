// Package boltfile makes it safe to read a bbolt file that may be damaged.
//
// bbolt trusts its pages: a damaged page makes it panic, also in a goroutine of its own, read
// beyond the end of the file, recurse without end, or report four billion pages one by one. Check
// looks at the pages before bbolt does, and Guard turns the panics that remain into errors. View
// and Update do both for one transaction on a file of another program.
package boltfile
