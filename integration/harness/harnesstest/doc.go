// Package harnesstest runs the programs of package harness for a test. They end with the test, their logs are shown if
// it fails, and mounts made through the package are unmounted.
package harnesstest
