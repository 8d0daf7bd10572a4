// Package harnesstest has the programs of package harness for a test. They end with the test, and
// their logs are shown if it fails. What a test mounts through it is unmounted.
package harnesstest
