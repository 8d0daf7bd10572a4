// Package dmtest helps tests that need a kernel with device-mapper.
//
// A test that needs one calls [RequireKernel] first, and is in a file named *_kernel_test.go: that
// is how `make kernel-test` finds it. It calls [NoLeaks] next, so that it leaves nothing behind.
package dmtest
