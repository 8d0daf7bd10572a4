// Package harness starts thinsnap and the programs that it works with: containerd with its clients, and a registry on
// loopback. Each has its files in a directory that the caller chooses, and its own sockets.
//
// The programs come from the cache that integration/setup.sh and integration/image/build.sh fill; see [FindTools].
// Tests use package harnesstest, which ends the programs with the test.
package harness
