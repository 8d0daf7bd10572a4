// Package harness runs the programs that a test of thinsnap needs around it: containerd, its clients, a registry on
// loopback and thinsnap itself, each with its files in the test's own directory and its own sockets.
//
// The programs come from the cache that integration/setup.sh and integration/image/build.sh fill; see [FindTools].
// Whatever a function here starts or mounts ends with the test. The logs of the programs are shown if the test fails.
package harness
